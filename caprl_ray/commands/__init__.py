"""One module per command that is longer than a few lines."""
