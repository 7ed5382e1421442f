"""LLM_E: texts to embeddings (SPEC 3.6)."""
