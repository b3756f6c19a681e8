"""Resizing as torchvision does it, with antialiasing, where published programs resize with it and
not with Pillow.

Bytes are multiplied by integer weights of 15 bits and rounded after each axis, as in PyTorch's
kernels; Pillow has weights of 22 bits, so that values differ by 1, seldom by 2. Floats are not
rounded.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy import sparse

BITS = 15  # of an integer weight, with its sign
MOST_SHIFT = 22
SIZES = 256  # pairs of lengths whose weights, few of which are not 0, are kept


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Name: the kernel and half of its width.
FILTERS: dict[str, tuple[Callable, int]] = {'bilinear': (_triangle, 1), 'bicubic': (_cubic, 2)}


def resized(
    image: np.ndarray, size: tuple[int, int], interpolation: str, *, rounded: bool
) -> np.ndarray:
    """Resizes an image.

    Args:
        image: uint8 [H, W, C].
        size: width and height of the result, in pixels.
        interpolation: one of FILTERS.
        rounded: whether the result is rounded, after each axis.

    Returns:
        uint8 [height, width, C], or float32 with values from 0 to 255 (a little beyond with
        'bicubic') if it is not rounded.
    """
    along = _along_bytes if rounded else _along_floats
    found = image if rounded else image.astype(np.float32)
    for axis, new in ((1, size[0]), (0, size[1])):
        if found.shape[axis] != new:
            found = along(found.swapaxes(0, axis), new, interpolation).swapaxes(0, axis)
    return found


def _along_bytes(image: np.ndarray, new: int, interpolation: str) -> np.ndarray:
    """Resizes the first axis, in integers."""
    weights, shift = _integers(len(image), new, interpolation)
    sums = _product(weights, image.astype(np.int32)) + np.int32(1 << (shift - 1))
    return np.clip(sums >> shift, 0, 255).astype(np.uint8)


def _along_floats(image: np.ndarray, new: int, interpolation: str) -> np.ndarray:
    return _product(_floats(len(image), new, interpolation), image)


def _product(weights: sparse.csr_array, image: np.ndarray) -> np.ndarray:
    """The weighted sums over the first axis."""
    sums = weights @ image.reshape(len(image), -1)
    return sums.reshape(-1, *image.shape[1:])


@functools.lru_cache(SIZES)
def _integers(old: int, new: int, interpolation: str) -> tuple[sparse.csr_array, int]:
    """Returns integer weights [new, old], and how many bits their sums are shifted."""
    weights = _weights(old, new, interpolation, np.float64)
    shift = 0
    while shift < MOST_SHIFT and int(0.5 + weights.max() * 2 ** (shift + 1)) < 2**BITS:
        shift += 1
    # Half away from zero; a sum stays below 2^31.
    whole = np.trunc(weights * 2**shift + np.copysign(0.5, weights))
    return sparse.csr_array(whole.astype(np.int32)), shift


@functools.lru_cache(SIZES)
def _floats(old: int, new: int, interpolation: str) -> sparse.csr_array:
    return sparse.csr_array(_weights(old, new, interpolation, np.float32))


def _weights(old: int, new: int, interpolation: str, dtype: type) -> np.ndarray:
    """Returns the weights [new, old] of the values along an axis."""
    kernel, reach = FILTERS[interpolation]
    scale = dtype(old) / dtype(new)
    stretch = max(scale, dtype(1))  # antialiasing: wider than a step between results
    center = (scale * (np.arange(new, dtype=dtype) + dtype(0.5)))[:, None]
    first = np.maximum((center - reach * stretch + dtype(0.5)).astype(np.int64), 0)
    last = np.minimum((center + reach * stretch + dtype(0.5)).astype(np.int64), old)
    places = np.arange(old)
    distance = (places.astype(dtype) - center + dtype(0.5)) / stretch
    weights = np.where((places >= first) & (places < last), kernel(distance), 0).astype(dtype)
    return weights / weights.sum(axis=1, keepdims=True)
