"""Facet writers, one file each."""
