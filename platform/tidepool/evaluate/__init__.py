"""How good a model is on the rows that it never saw, and whether that is good enough."""
