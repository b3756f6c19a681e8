"""What `clip-jax data` does: scan, inspect, verify and import a data set."""
