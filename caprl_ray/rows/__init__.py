"""The rows that travel between stages, and the frame around every stage."""
