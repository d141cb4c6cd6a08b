"""One module per command that takes more than a few lines."""
