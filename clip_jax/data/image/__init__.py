"""Images: reading headers, decoding, orientation."""
