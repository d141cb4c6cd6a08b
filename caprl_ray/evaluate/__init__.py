"""The command `evaluate`: what a reader can answer from the captions of outputs, on a sample of their images."""
