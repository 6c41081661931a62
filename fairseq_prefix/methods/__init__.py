"""What can be trained over a frozen base: one file per method."""
