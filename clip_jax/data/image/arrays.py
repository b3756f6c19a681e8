"""Decoded images: uint8 RGB arrays, turned upright by their EXIF orientation."""

import numpy as np
from PIL import Image

# EXIF orientations by what turns the image upright. From 5 on it is transposed first.
MIRRORED = (2, 3, 6, 7)
UPSIDE_DOWN = (3, 4, 7, 8)


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


def eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grayscale to 8 bits; Pillow would clip it at 255. Others stay as they are."""
    if not image.mode.startswith('I;16'):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def as_rgb(array: np.ndarray) -> np.ndarray:
    """Returns uint8 [height, width, 3]; one channel is grayscale; ValueError for anything else."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f'an image array must be uint8 [height, width, 3], not {array.dtype} {array.shape}.'
    )
