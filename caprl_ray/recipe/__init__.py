"""The recipe: its sections, the names that they may use, and how a recipe is loaded."""
