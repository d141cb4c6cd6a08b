"""One replica: an engine in an actor of Ray Data, its starts, its batches, and the rows that kill it."""
