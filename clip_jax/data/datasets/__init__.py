"""Our own TFDS builders, found by name: `tfds:shapes_captions/train` needs nothing but this
package.
"""
