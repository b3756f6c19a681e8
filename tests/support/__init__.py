"""Helpers that several tests share: small models, data and processes."""
