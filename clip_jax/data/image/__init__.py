"""Encoded images: their headers and decoders."""
