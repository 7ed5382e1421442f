"""A simulated shop: what it sells, when its users buy, and what."""
