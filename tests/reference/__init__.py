"""Scripts that make small checkpoints with the libraries that publish them, for tests/convert.

`python -m reference.NAME` in tests/ writes the files into tests/convert/fixtures.
"""
