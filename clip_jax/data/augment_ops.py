"""The operations of RandAugment and TrivialAugment, and random erasing, on uint8 RGB images.

Each operation gives what Pillow gives, as in the papers' programs, to within 1 of 255.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

LEVELS = 31  # magnitudes 0 to 30, from no change to the largest
ERASED_AREA = (0.02, 0.4)  # of the image (arXiv 1708.04896, section 4.3)
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width


def affine(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves the pixels of an image; the nearest one is taken, and outside of it all is black.

    Args:
        image: uint8 [height, width, 3].
        matrix: float [2, 3], from a place in the result (x, y, 1) to one in the image. The corner
            of the image is at (0, 0), the center of its first pixel at (0.5, 0.5).
    """
    centers = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    to_image = matrix @ centers
    to_image[:, 2] -= 0.5  # for OpenCV, places are those of the centers
    return cv2.warpAffine(
        image,
        to_image,
        image.shape[1::-1],
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Moves each row to the left by `slope` times its distance from the top."""
    return affine(image, np.array([[1, slope, 0], [0, 1, 0]], float))


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Moves each column up by `slope` times its distance from the left."""
    return affine(image, np.array([[1, 0, 0], [slope, 1, 0]], float))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moves an image to the left by a number of pixels, cut to an integer."""
    return affine(image, np.array([[1, 0, int(pixels)], [0, 1, 0]], float))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Moves an image up by a number of pixels, cut to an integer."""
    return affine(image, np.array([[1, 0, 0], [0, 1, int(pixels)]], float))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates an image about its center, counterclockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = (side / 2 for side in image.shape[:2])
    return affine(
        image, np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
    )


def brightness(image: np.ndarray, change: float) -> np.ndarray:
    """Multiplies an image by 1 + `change`."""
    return _mapped(image, np.arange(256) * (1 + change))


def contrast(image: np.ndarray, change: float) -> np.ndarray:
    """Multiplies the distance from the mean gray value by 1 + `change`."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _mapped(image, mean + (np.arange(256) - mean) * (1 + change))


def color(image: np.ndarray, change: float) -> np.ndarray:
    """Multiplies the distance of each pixel from its gray value by 1 + `change`."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _blended(gray, image, change)


def sharpness(image: np.ndarray, change: float) -> np.ndarray:
    """Multiplies the distance of each pixel from a smoothed image by 1 + `change`."""
    smooth = image.copy()  # at the edge pixels stay
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return _blended(smooth, image, change)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Keeps the highest bits of each value."""
    return cv2.bitwise_and(image, np.full_like(image, 256 - 2 ** (8 - int(bits))))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts all values from `threshold` on."""
    values = np.arange(256)
    return _mapped(image, np.where(values < threshold, values, 255 - values))


def auto_contrast(image: np.ndarray, _: float = 0.0) -> np.ndarray:
    """Stretches the values of each channel to 0 to 255."""
    mapped = []
    for channel in cv2.split(image):
        low, high = cv2.minMaxLoc(channel)[:2]
        curve = (np.arange(256) - low) * (255 / (high - low)) if high > low else np.arange(256)
        mapped.append(_mapped(channel, curve))
    return cv2.merge(mapped)


def equalize(image: np.ndarray, _: float = 0.0) -> np.ndarray:
    """Makes the values of each channel about equally frequent."""
    mapped = []
    for channel in cv2.split(image):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).astype(np.int64).ravel()
        used = counts[counts > 0]
        step = int(used.sum() - used[-1]) // 255 if len(used) > 1 else 0
        before = np.cumsum(counts) - counts
        curve = (step // 2 + before) // step if step else np.arange(256)
        mapped.append(_mapped(channel, curve))
    return cv2.merge(mapped)


def _mapped(image: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Replaces each value by what a curve [256] has at its place, cut to uint8."""
    return cv2.LUT(image, np.clip(curve, 0, 255).astype(np.uint8))


def _blended(gray: np.ndarray, image: np.ndarray, change: float) -> np.ndarray:
    # OpenCV rounds, Pillow cuts fractions off.
    return cv2.addWeighted(image, 1 + change, gray, -change, -0.499)


class Op(NamedTuple):
    """An operation and the argument that the largest magnitude gives it.

    Attributes:
        function: (image, argument) -> image.
        least: the argument at magnitude 0.
        most: the argument at the largest magnitude.
        signed: whether the argument is negated in half of all cases.
        of_side: whether the argument is a fraction of the image's side.
        whole: whether the argument is rounded to an integer.
    """

    function: Callable[[np.ndarray, float], np.ndarray]
    least: float = 0.0
    most: float = 0.0
    signed: bool = False
    of_side: bool = False
    whole: bool = False


def _table(shear: float, shift: Op, degrees: float, factor: float, bits: int) -> Mapping[str, Op]:
    """The operations with their largest arguments."""
    return {
        'identity': Op(lambda image, _: image),
        'shear_x': Op(shear_x, 0, shear, signed=True),
        'shear_y': Op(shear_y, 0, shear, signed=True),
        'translate_x': shift._replace(function=translate_x),
        'translate_y': shift._replace(function=translate_y),
        'rotate': Op(rotate, 0, degrees, signed=True),
        'brightness': Op(brightness, 0, factor, signed=True),
        'color': Op(color, 0, factor, signed=True),
        'contrast': Op(contrast, 0, factor, signed=True),
        'sharpness': Op(sharpness, 0, factor, signed=True),
        'posterize': Op(posterize, 8, bits, whole=True),
        'solarize': Op(solarize, 255, 0),
        'auto_contrast': Op(auto_contrast),
        'equalize': Op(equalize),
    }


# The arguments are those of torchvision, whose tables follow the papers.
_FRACTION = Op(translate_x, 0, 150 / 331, signed=True, of_side=True)
_PIXELS = Op(translate_x, 0, 32, signed=True)
RAND = _table(shear=0.3, shift=_FRACTION, degrees=30, factor=0.9, bits=4)
TRIVIAL_WIDE = _table(shear=0.99, shift=_PIXELS, degrees=135, factor=0.99, bits=2)


def argument(op: Op, level: int, side: int) -> float:
    """Returns the argument of an operation, without its sign.

    Args:
        op: the operation.
        level: the magnitude, 0 to LEVELS - 1.
        side: the side of the image in pixels.
    """
    change = (op.most - op.least) * level / (LEVELS - 1)
    if op.whole:
        change = round(change)
    return (op.least + change) * (side if op.of_side else 1)


def rand_augment(image: np.ndarray, rng: np.random.Generator, count: int, level: int) -> np.ndarray:
    """Applies operations drawn at random, all of one magnitude (RandAugment, arXiv 1909.13719).

    Args:
        image: uint8 [size, size, 3]; it is not changed.
        rng: random numbers.
        count: the number of operations; one may come twice.
        level: the magnitude, 0 to LEVELS - 1.

    Returns:
        The image itself or a new one.
    """
    ops = [*RAND.values()]
    for place, sign in rng.random((count, 2)):
        image = _apply(image, ops[int(place * len(ops))], level, sign)
    return image


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one operation of a random magnitude (TrivialAugment, arXiv 2103.10158, wide).

    Args:
        image: uint8 [size, size, 3]; it is not changed.
        rng: random numbers.

    Returns:
        The image itself or a new one.
    """
    ops = [*TRIVIAL_WIDE.values()]
    place, level, sign = rng.random(3)
    return _apply(image, ops[int(place * len(ops))], int(level * LEVELS), sign)


def _apply(image: np.ndarray, op: Op, level: int, sign: float) -> np.ndarray:
    value = argument(op, level, len(image))
    return op.function(image, -value if op.signed and sign < 0.5 else value)


def random_erasing(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Replaces a rectangle by random values (arXiv 1708.04896, algorithm 1), in place.

    Args:
        image: uint8 [height, width, 3].
        rng: random numbers.
        p: the probability that anything changes.

    Returns:
        The image.
    """
    if rng.random() >= p:
        return image
    height, width = image.shape[:2]
    while True:
        share, shape, x, y = rng.random(4)
        area = (ERASED_AREA[0] + share * (ERASED_AREA[1] - ERASED_AREA[0])) * height * width
        aspect = ERASED_ASPECT[0] + shape * (ERASED_ASPECT[1] - ERASED_ASPECT[0])
        h, w = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        left, top = int(x * width), int(y * height)
        if left + w <= width and top + h <= height:  # else all is drawn again, as in the paper
            noise = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
            image[top : top + h, left : left + w] = noise
            return image
