"""Code that is there for a compiler's or a device's sake."""
