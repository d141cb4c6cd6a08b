"""The output folder: who may write it, what stands in it, and whether it is complete."""
