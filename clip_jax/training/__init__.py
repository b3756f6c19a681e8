"""A training run: setup, loop, evaluations, the run directory, and plans for devices elsewhere."""
