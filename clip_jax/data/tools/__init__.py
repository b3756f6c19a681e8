"""The tools of `clip-jax data`: inspect, verify and import a data set."""
