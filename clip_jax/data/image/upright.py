"""Reads training images: size and RGB pixels, with the EXIF orientation applied."""

import numpy as np

from clip_jax.data.image import arrays, decoders, headers, opening


def measure(data: bytes | np.ndarray, *, max_pixels: int = opening.MAX_PIXELS) -> tuple[int, int]:
    """Returns (height, width) of the upright image, from its header.

    Args:
        data: the image, encoded or as a uint8 array.
        max_pixels: images with more are refused.

    Raises:
        BadRecord: if it is not an image, or too small or too large.
    """
    if not isinstance(data, np.ndarray):
        return headers.read(data, max_pixels=max_pixels).upright
    height, width = arrays.as_rgb(data).shape[:2]
    opening.check_size(height, width, max_pixels)
    return height, width


def decode(data: bytes | np.ndarray, *, max_pixels: int = opening.MAX_PIXELS) -> np.ndarray:
    """Decodes a training image to uint8 RGB [height, width, 3].

    EXIF orientation is applied, so that images are upright, as their captions describe them;
    `Preprocess` ignores it, as published evaluations do. Of an animation the first frame is taken;
    transparency is dropped.

    Args:
        data: the image, encoded or as a uint8 array.
        max_pixels: images with more are refused.

    Raises:
        BadRecord: if the image cannot be decoded.
    """
    if isinstance(data, np.ndarray):
        measure(data, max_pixels=max_pixels)
        return arrays.as_rgb(data)
    header = headers.read(data, max_pixels=max_pixels)
    image, _ = decoders.decode(data, header)
    return arrays.turn(image, header.orientation)
