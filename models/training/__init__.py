"""Training and evaluation: a generated world, data, losses, measures."""
