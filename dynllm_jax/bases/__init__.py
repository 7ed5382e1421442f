"""What kinds of systems share: node memories, a training graph, counts."""
