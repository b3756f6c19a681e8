"""Built-in TFDS data sets, one builder per file: `tfds:shapes_captions/train` needs no download."""
