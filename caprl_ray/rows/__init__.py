"""The rows that travel between stages, and what surrounds every stage."""
