"""What a run does, from the command to the report."""
