"""The temporal graph and the node memories over it."""
