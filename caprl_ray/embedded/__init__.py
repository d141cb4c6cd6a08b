"""The tiny models that ship with the package, and the rendered scenes that they know (README.md)."""
