"""Search for the best output, with keys and values shared by hypotheses."""
