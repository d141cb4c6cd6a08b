"""The output folder: who may write it, what it holds, and whether it is complete."""
