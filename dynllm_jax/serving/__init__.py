"""Answers of a trained model: on the command line, over HTTP, in a page."""
