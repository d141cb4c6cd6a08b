"""The recipe: its sections, the names that it may use, and how it is loaded."""
