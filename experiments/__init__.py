"""Loops over configurations, and the pages they write; no model code."""
