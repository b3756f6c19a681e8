"""Embeds a data set into a folder, and searches in it."""
