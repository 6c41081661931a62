"""Tuning methods, one file each; what they share is in tuned.py and virtual_tokens.py."""
