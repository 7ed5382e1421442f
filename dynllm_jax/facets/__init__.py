"""LLM_G: purchases to the four facet texts (SPEC 3.6, 8)."""
