"""The command line `clip-jax`: one file per command."""
