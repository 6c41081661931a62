"""The models that can be the base: one file per family."""
