"""Find the fastest engine settings for a recipe by measuring them on this machine."""
