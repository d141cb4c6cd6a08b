"""The embedded captioner: a tiny model of CapRL-3B's architecture, and the rendered scenes that it describes."""
