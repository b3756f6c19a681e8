"""Checkpoints elsewhere: by address or by name; what they need is downloaded and verified."""
