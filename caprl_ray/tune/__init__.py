"""Find the engine settings that are fastest for a recipe, by measuring them on the machine at hand."""
