"""Flax modules and the functions that they are made of."""
