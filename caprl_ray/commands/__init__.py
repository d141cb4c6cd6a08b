"""One module for each command that is longer than a few lines."""
