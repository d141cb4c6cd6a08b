"""Read the units of the plan as rows."""
