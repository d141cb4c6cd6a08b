"""The recipe: its sections, the names that it may use, and how a file becomes a recipe."""
