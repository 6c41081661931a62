"""Model families, one file each; what they share is in model.py, encoder_decoder.py and causal.py."""
