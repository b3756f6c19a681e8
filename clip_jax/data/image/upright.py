"""Size and pixels of an image as it is shown: RGB, with its EXIF orientation applied."""

import numpy as np

from clip_jax.data.image import decoders, headers

# EXIF's orientations as what must be done to see the image upright. From 5 on, rows and columns
# change places first.
MIRRORED = (2, 3, 6, 7)
UPSIDE_DOWN = (3, 4, 7, 8)


def measure(data: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width of an image as it is shown, from its header; BadRecord if it has no
    usable size.
    """
    if not isinstance(data, np.ndarray):
        return headers.read(data).upright
    height, width = as_rgb(data).shape[:2]
    headers.check_size(height, width)
    return height, width


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes an image for training to uint8 RGB [height, width, 3]; BadRecord if it cannot be.

    EXIF orientation is applied, so that pictures stand upright, as their captions say; `Preprocess`
    ignores it, as the published evaluation rule does. Of an animation the first frame is taken,
    transparency is dropped.
    """
    if isinstance(data, np.ndarray):
        measure(data)
        return as_rgb(data)
    header = headers.read(data)
    image, _ = decoders.decode(data, header)
    return turn(image, header.orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as EXIF asks for, so that it stands upright."""
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
    """Returns uint8 [height, width, 3]; one channel is gray; ValueError for anything else."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f'an image array must be uint8 [height, width, 3], this one is {array.dtype} {array.shape}.'
    )
