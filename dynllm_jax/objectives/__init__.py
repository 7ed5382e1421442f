"""What is minimized: negatives, scores and losses."""
