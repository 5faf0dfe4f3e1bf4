"""Faults of a node, injected on purpose: each says that it is a drill, from the first reading to the page."""
