"""Embeddings of a data set on disk: writing a folder of them, and searching in it."""
