"""Training: the loop, checkpoints, events, and the protocols it is written against. Knows no task by name."""
