"""Attention with a prefix, and the layers that use it."""
