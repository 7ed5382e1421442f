"""Event logs: sources, preparation, and the store of prepared logs."""
