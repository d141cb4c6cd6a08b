"""Everything that is said to Ray."""
