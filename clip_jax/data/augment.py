"""Training augmentation: random crop, flip, color jitter, grayscale, and the operations of
augment_ops (OpenCV, made for speed).
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from clip_jax.data import augment_ops, patches
from clip_jax.data.image import arrays, decoders, headers
from clip_jax.data.image.opening import MAX_PIXELS, check_size
from clip_jax.data.patches import Patches

_LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601


class Box(NamedTuple):
    """A rectangle of an upright image, in pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random augmentation of a training image, in the order of the attributes.

    Attributes:
        crop_scale: range of the area of the crop, as a fraction of the image.
        flip: probability of a horizontal flip.
        randaugment: number of operations and magnitude, 0 to 30, of RandAugment; (): none.
        trivial_augment: whether to apply TrivialAugment.
        color_jitter: strengths of brightness, contrast, saturation and hue; all 0 for none.
        color_jitter_prob: probability of color jitter.
        grayscale: probability of conversion to grayscale.
        random_erasing: probability of replacing a rectangle by noise.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.0
    randaugment: tuple[int, ...] = ()
    trivial_augment: bool = False
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 0.8
    grayscale: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self):
        scale = self.crop_scale
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f'crop_scale {tuple(scale)} is not a range of fractions of the area, such as '
                '(0.5, 1)'
            )
        for name in ('flip', 'color_jitter_prob', 'grayscale', 'random_erasing'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} {getattr(self, name)} is not a probability from 0 to 1')
        jitter = self.color_jitter
        if len(jitter) != 4 or not all(0 <= x <= 1 for x in jitter) or jitter[3] > 0.5:
            raise ValueError(
                f'color_jitter {tuple(jitter)} is not brightness, contrast and saturation from 0 '
                'to 1 and hue from 0 to 0.5'
            )
        drawn, most = tuple(self.randaugment), augment_ops.LEVELS - 1
        whole = all(isinstance(x, int) for x in drawn)
        if drawn and not (len(drawn) == 2 and whole and drawn[0] > 0 and 0 <= drawn[1] <= most):
            raise ValueError(
                f'randaugment {drawn} is not a number of operations above 0 and a magnitude from 0 '
                f'to {most}, such as (2, 9); () turns it off'
            )
        if drawn and self.trivial_augment:
            raise ValueError(
                f'randaugment is {drawn} and trivial_augment is on; expected at most one of them. '
                'Set randaugment to () or trivial_augment to False'
            )

    def __call__(
        self,
        data: bytes | np.ndarray,
        shape: tuple[int, int],
        rng: np.random.Generator,
        out: np.ndarray | Patches,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Augments an image.

        Args:
            data: the image, encoded or uint8 [height, width, 3].
            shape: (height, width) of the upright image.
            rng: the random numbers of this example.
            out: uint8 [size, size, 3], which is overwritten with the result; or Patches of one
                blank image, for a crop with the aspect ratio of the image, as large as they hold.
            max_pixels: images with more are refused.

        Raises:
            BadRecord: if the image cannot be decoded.
        """
        if isinstance(out, Patches):
            box = random_box(rng, *shape, scale=self.crop_scale, ratio=(shape[1] / shape[0],) * 2)
            sides = patches.fitted(int(box.height), int(box.width), out.patch_size, len(out.pixels))
            crop = np.empty((*sides, 3), np.uint8)
            patches.put(self._changed(data, box, rng, crop, max_pixels), out)
            return
        box = random_box(rng, *shape, scale=self.crop_scale)
        image = self._changed(data, box, rng, out, max_pixels)
        if image is not out:
            out[:] = image

    def _changed(
        self,
        data: bytes | np.ndarray,
        box: Box,
        rng: np.random.Generator,
        out: np.ndarray,
        max_pixels: int,
    ) -> np.ndarray:
        """Returns the augmented crop, in `out` or in a new array of its shape."""
        image = resized_crop(data, box, out.shape[:2], out=out, max_pixels=max_pixels)
        image = flip(image, rng, self.flip)
        if self.randaugment:
            image = augment_ops.rand_augment(image, rng, *self.randaugment)
        if self.trivial_augment:
            image = augment_ops.trivial_augment(image, rng)
        if any(self.color_jitter):
            brightness, contrast, saturation, hue = self.color_jitter
            image = color_jitter(
                image,
                rng,
                brightness=brightness,
                contrast=contrast,
                saturation=saturation,
                hue=hue,
                p=self.color_jitter_prob,
            )
        if self.grayscale:
            image = grayscale(image, rng, self.grayscale)
        if self.random_erasing:
            image = augment_ops.random_erasing(image, rng, self.random_erasing)
        return image


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Samples a random crop (Szegedy et al., arXiv 1409.4842, section 6).

    The position is uniform. Other implementations sample again until a crop fits, and take the
    center crop if none does; this one samples only aspect ratios with which the crop fits.

    Args:
        rng: random numbers.
        height: height of the image.
        width: width of the image.
        scale: range of the crop's area as a fraction of the image's, sampled uniformly.
        ratio: range of its aspect ratio, width / height, sampled log-uniformly.

    Returns:
        The crop, at integer coordinates.
    """
    share, shape, x, y = rng.random(4)
    area = (scale[0] + share * (scale[1] - scale[0])) * height * width
    # width² = area * aspect and height² = area / aspect may not exceed those of the image.
    low, high = (min(max(a, ratio[0]), ratio[1]) for a in (area / height**2, width**2 / area))
    aspect = low * (high / low) ** shape
    # In an image longer than any allowed aspect, the largest crop is smaller than the area drawn.
    area = min(area, width**2 / aspect, height**2 * aspect)
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    return Box(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)


def resized_crop(
    data: bytes | np.ndarray,
    box: Box,
    size: int | tuple[int, int],
    *,
    out: np.ndarray | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Crops an image and resizes the crop, bicubic and antialiased.

    JPEGs are decoded at a reduced size if that is enough. On photographs, the mean difference to
    Pillow's antialiased bicubic filter is about 1 in 255.

    Args:
        data: the image, encoded or uint8 [height, width, 3].
        box: the crop, in pixels of the upright image.
        size: height and width of the output in pixels, or the side of a square.
        out: where to write the output, if not to a new array.
        max_pixels: images with more are refused.

    Returns:
        uint8 [height, width, 3].

    Raises:
        BadRecord: if the image cannot be decoded.
    """
    size = (size, size) if isinstance(size, int) else size
    out = np.empty((*size, 3), np.uint8) if out is None else out
    if isinstance(data, np.ndarray):
        image = arrays.as_rgb(data)
        height, width = image.shape[:2]
        check_size(height, width, max_pixels)
        _check_inside(box, height, width)
        return _resample(image, box, out)
    header = headers.read(data, max_pixels=max_pixels)
    _check_inside(box, *header.upright)
    stored = _stored(box, header)
    height, width = size if header.orientation <= 4 else size[::-1]
    across, down = stored.width / width, stored.height / height
    image, factor = decoders.decode(
        data, header, reduce=min(_reduction(across), _reduction(down)), shrink=min(across, down)
    )
    # Turned by 90 degrees, an image that is no square has another shape.
    turned = out if height == len(out) else np.empty((height, width, 3), np.uint8)
    _resample(image, Box(*(x / factor for x in stored)), turned, averaged=factor > 1)
    if header.orientation != 1:
        out[:] = arrays.turn(turned, header.orientation)
    return out


def flip(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Flips an image horizontally, in place, with probability `p`."""
    return cv2.flip(image, 1, image) if rng.random() < p else image


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    p: float = 1.0,
) -> np.ndarray:
    """Jitters the colors of an image, in a fixed order.

    SimCLR (arXiv 2002.05709, appendix A) has 0.8, 0.8, 0.8 and 0.2 times the strength and p = 0.8.

    Args:
        image: uint8 RGB [height, width, 3]; it is not changed.
        rng: random numbers.
        brightness: its factor is uniform in 1 ± this value.
        contrast: its factor, about the mean gray value, is uniform in 1 ± this value.
        saturation: its factor is uniform in 1 ± this value.
        hue: its shift is uniform in ± this value, a fraction of the color circle up to 0.5.
        p: the probability that anything changes.

    Returns:
        The image itself if nothing changes, otherwise a new one.
    """
    chance, *drawn = rng.random(5)
    if chance >= p:
        return image
    widths = (brightness, contrast, saturation, hue)
    b, c, s, shift = ((2 * x - 1) * width for x, width in zip(drawn, widths, strict=True))
    b, c, s = (max(0.0, 1 + x) for x in (b, c, s))
    if brightness:
        image = cv2.convertScaleAbs(image, alpha=b)
    if contrast:
        mean = np.dot(cv2.mean(image)[:3], _LUMINANCE)
        curve = np.arange(256) * c + mean * (1 - c)
        image = cv2.LUT(image, np.clip(curve + 0.5, 0, 255).astype(np.uint8))
    if saturation:
        image = cv2.transform(image, s * np.eye(3) + (1 - s) * np.tile(_LUMINANCE, (3, 1)))
    if hue:
        # The color circle has 256 steps, on which uint8 wraps around by itself.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(round(shift * 256) % 256)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def grayscale(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Converts an image to grayscale (Rec. 601), in three channels, with probability `p`."""
    if rng.random() >= p:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _resample(
    image: np.ndarray, box: Box, out: np.ndarray, *, averaged: bool = False
) -> np.ndarray:
    """Resizes a crop of an image into `out` [height, width, 3], bicubic and antialiased.

    The box may have fractional coordinates; `averaged` says that the image was reduced before. The
    crop is halved by area averaging as often as possible, then low-pass filtered, then sampled.
    """
    high, wide = out.shape[:2]
    left, top = math.floor(box.left), math.floor(box.top)
    x, y = _reduction(box.width / wide), _reduction(box.height / high)
    # Complete blocks, if need be with pixels from outside of the crop.
    right = left + x * math.ceil((box.left + box.width - left) / x)
    bottom = top + y * math.ceil((box.top + box.height - top) / y)
    image = image[top:bottom, left:right]
    if max(x, y) > 1:
        height, width = image.shape[0] // y, image.shape[1] // x
        image = cv2.resize(
            image[: height * y, : width * x], (width, height), interpolation=cv2.INTER_AREA
        )
    box = Box((box.left - left) / x, (box.top - top) / y, box.width / x, box.height / y)
    across, down = box.width / wide, box.height / high
    image = _smooth(image, (across, down), averaged=averaged or max(x, y) > 1)
    if box == (0, 0, image.shape[1], image.shape[0]):
        return cv2.resize(image, (wide, high), out, interpolation=cv2.INTER_CUBIC)
    # In a box pixels are squares; for OpenCV they are points in the centers.
    to_image = np.array(
        [[across, 0, box.left + across / 2 - 0.5], [0, down, box.top + down / 2 - 0.5]]
    )
    return cv2.warpAffine(
        image,
        to_image,
        (wide, high),
        out,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _reduction(shrink: float) -> int:
    """Returns the power of two by which a side is reduced before it is resampled.

    1.5 to 3 times the output's pixels remain. With fewer, detail is lost: JPEGs decoded exactly to
    the output's size differ by 3 to 4 in 255. With more, three filter taps smooth too little. With
    this rule, crops of 16 photographs, some of grass, differed by 0.4 to 1.6, and 3.1 at worst.
    """
    return 2 ** max(0, math.ceil(math.log2(shrink / 3)))


def _smooth(image: np.ndarray, shrink: tuple[float, float], *, averaged: bool) -> np.ndarray:
    """Low-pass filters an image before it is downsampled by `shrink` (x, y).

    The weight of a neighbor, 0.22 (shrink - 1), was fitted to Pillow's filter. Patterns as fine as
    single pixels, which an averaged image does not have, need a higher weight at small factors.
    """
    x, y = (
        min(1 / 3, 0.22 * (s if averaged else max(s, math.sqrt(s))))
        for s in (max(0.0, times - 1) for times in shrink)
    )
    if max(x, y) < 0.04:
        return image
    across, down = (np.array([w, 1 - 2 * w, w]) for w in (x, y))
    return cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REPLICATE)


def _check_inside(box: Box, height: int, width: int) -> None:
    if (
        min(box.left, box.top) < 0
        or min(box.width, box.height) < 1
        or box.left + box.width > width
        or box.top + box.height > height
    ):
        raise ValueError(f'{box} is not inside an image of {width} x {height} pixels.')


def _stored(box: Box, header: headers.Header) -> Box:
    """Converts a box of the upright image to one of the stored image."""
    height, width = header.upright
    left, top, w, h = box
    if header.orientation in arrays.MIRRORED:
        left = width - left - w
    if header.orientation in arrays.UPSIDE_DOWN:
        top = height - top - h
    return Box(top, left, h, w) if header.orientation > 4 else Box(left, top, w, h)
