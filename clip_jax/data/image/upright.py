"""Reads training images: size and RGB pixels, with the EXIF orientation applied."""

import numpy as np

from clip_jax.data.image import decoders, headers

# EXIF orientations by what turns the image upright. From 5 on it is transposed first.
MIRRORED = (2, 3, 6, 7)
UPSIDE_DOWN = (3, 4, 7, 8)


def measure(data: bytes | np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of the upright image, from its header.

    Args:
        data: the image, encoded or as a uint8 array.

    Raises:
        BadRecord: if it is not an image, or too small or too large.
    """
    if not isinstance(data, np.ndarray):
        return headers.read(data).upright
    height, width = as_rgb(data).shape[:2]
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
        return as_rgb(data)
    header = headers.read(data)
    image, _ = decoders.decode(data, header)
    return turn(image, header.orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image upright, given its EXIF orientation."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in MIRRORED:
        image = image[:, ::-1]
    if orientation in UPSIDE_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def as_rgb(array: np.ndarray) -> np.ndarray:
    """Returns uint8 [height, width, 3]; one channel is grayscale; ValueError for anything else."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f'an image array must be uint8 [height, width, 3], not {array.dtype} {array.shape}.'
    )
