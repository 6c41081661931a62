"""Bases, checkpoints, exports and vocabularies on disk."""
