"""Reads training images: size and RGB pixels, with the EXIF orientation applied."""

import numpy as np

from clip_jax.data.image import arrays, decoders, headers


def measure(data: bytes | np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of the upright image, from its header.

    Args:
        data: the image, encoded or as a uint8 array.

    Raises:
        BadRecord: if it is not an image, or too small or too large.
    """
    if not isinstance(data, np.ndarray):
        return headers.read(data).upright
    height, width = arrays.as_rgb(data).shape[:2]
    headers.check_size(height, width)
    return height, width


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes a training image to uint8 RGB [height, width, 3].

    EXIF orientation is applied, so that images are upright, as their captions describe them;
    `Preprocess` ignores it, as published evaluations do. Of an animation the first frame is taken;
    transparency is dropped.

    Args:
        data: the image, encoded or as a uint8 array.

    Raises:
        BadRecord: if the image cannot be decoded.
    """
    if isinstance(data, np.ndarray):
        measure(data)
        return arrays.as_rgb(data)
    header = headers.read(data)
    image, _ = decoders.decode(data, header)
    return arrays.turn(image, header.orientation)
