"""Training, ranking and metrics: the loops that every system shares."""
