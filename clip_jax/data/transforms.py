"""What happens to an image and its captions between storage and batch, and then on the device."""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import decoders, headers

# The statistics that published CLIP models normalize with (OpenAI's preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601
# EXIF's orientations as what must be done to see the image upright. From 5 on, rows and columns
# change places first.
_MIRRORED = (2, 3, 6, 7)
_UPSIDE_DOWN = (3, 4, 7, 8)

# Pillow's: bicubic, bilinear, lanczos, nearest, box, hamming.
_INTERPOLATIONS = {filter.name.lower(): filter for filter in Image.Resampling}


MIN_SIDE, MAX_PIXELS = headers.MIN_SIDE, headers.MAX_PIXELS
# The rules by which one of several captions is taken.
CAPTIONS = ('random', 'first', 'longest')


class Box(NamedTuple):
    """A part of an upright image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


def measure(data: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width of an image as it is shown, from its header; BadRecord if it has no
    usable size.
    """
    if not isinstance(data, np.ndarray):
        return headers.read(data).upright
    height, width = _rgb(data).shape[:2]
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
        return _rgb(data)
    header = headers.read(data)
    image, _ = decoders.decode(data, header)
    return _turn(image, header.orientation)


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a random part of an image.

    The part's share of the area is uniform in `scale`, its aspect ratio (width / height) is
    log-uniform among those in `ratio` with which it fits, its place uniform. (Szegedy et al. 2015,
    section 6. Others draw again until a part fits, and take the center where none does.)
    """
    share, shape, x, y = rng.random(4)
    area = (scale[0] + share * (scale[1] - scale[0])) * height * width
    # width² = area * aspect and height² = area / aspect may not exceed those of the image.
    low, high = (min(max(a, ratio[0]), ratio[1]) for a in (area / height**2, width**2 / area))
    aspect = low * (high / low) ** shape
    # Where the image is longer than any allowed aspect, the largest part is below the drawn area.
    area = min(area, width**2 / aspect, height**2 * aspect)
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    return Box(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)


def cut(
    data: bytes | np.ndarray, box: Box, size: int, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Cuts a part out of an image and resizes it to uint8 [size, size, 3], bicubic and without
    aliasing; into `out`, where that is given. BadRecord if the image cannot be decoded.

    No more is decoded than that needs. The mean difference to Pillow's antialiased bicubic filter
    is about 1 in 255 on photographs.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    if isinstance(data, np.ndarray):
        _check_inside(box, *measure(data))
        return _resample(_rgb(data), box, out)
    header = headers.read(data)
    _check_inside(box, *header.upright)
    stored = _stored(box, header)
    across, down = stored.width / size, stored.height / size
    image, factor = decoders.decode(
        data, header, reduce=min(_reduction(across), _reduction(down)), shrink=min(across, down)
    )
    _resample(image, Box(*(x / factor for x in stored)), out, averaged=factor > 1)
    if header.orientation != 1:
        out[:] = _turn(out, header.orientation)
    return out


def flip(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Mirrors an image left to right, where it lies, with probability `p`."""
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
    """Changes the colors of a uint8 RGB image with probability `p`, in this order.

    The factors of brightness, contrast (about the mean gray) and saturation are uniform in 1 ± the
    given value, the shift of the hue in ± its value, a share of the color circle of at most 0.5.
    (SimCLR, arXiv 2002.05709, appendix A: 0.8, 0.8, 0.8 and 0.2 times the strength, p = 0.8.)
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
        # A circle of 256 steps, on which uint8 goes around by itself.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(round(shift * 256) % 256)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def grayscale(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Puts the luminance (Rec. 601) in all three channels with probability `p`."""
    if rng.random() >= p:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def choose_text(texts: Sequence[str], rng: np.random.Generator, rule: str = 'random') -> str:
    """Returns one of the texts by a rule of CAPTIONS; of 'random', all are equally likely.
    BadRecord if there is none.
    """
    if not texts:
        raise BadRecord('no_caption', 'no text belongs to this image')
    if rule == 'longest':
        return max(texts, key=len)
    return texts[0 if rule == 'first' else rng.integers(len(texts))]


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std: uint8 [..., 3] to float32, on the device."""
    images = jnp.asarray(images, jnp.float32) / 255
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a model wants its images in evaluation, equal to the published rule in every bit.

    `resize`: 'shortest' (OpenAI, open_clip) resizes the shortest side to `size` and cuts out the
    center, 'squash' (SigLIP) resizes both sides, 'longest' (open_clip) resizes the longest side and
    pads with zeros. `rgb`: colors become RGB 'after' that, which happens in the image's own mode
    (OpenAI, open_clip), or 'before' it (`do_convert_rgb` of Hugging Face's transformers), or before
    it and on 'white' (the same since transformers 5.22); the others drop transparency. `crop`: of
    an odd number of columns to cut, the half on the left is rounded to 'even' (OpenAI, open_clip)
    or 'down' (transformers). EXIF orientation is ignored. Normalize with `mean` and `std` after it.
    """

    size: int
    resize: str = 'shortest'
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rgb: str = 'after'
    crop: str = 'even'

    def __post_init__(self):
        lookup.check(self.resize, ('shortest', 'squash', 'longest'), what='preprocess: resize')
        lookup.check(self.rgb, ('after', 'before', 'white'), what='preprocess: rgb')
        lookup.check(self.crop, ('even', 'down'), what='preprocess: crop')
        lookup.check(self.interpolation, _INTERPOLATIONS, what='preprocess: interpolation')

    def __call__(self, image: Image.Image | str | os.PathLike | bytes | np.ndarray) -> np.ndarray:
        """Returns uint8 [size, size, 3] of a PIL image, path, encoded bytes or uint8 array."""
        shape = (self.size, self.size, 3)
        if isinstance(image, np.ndarray) and (image.shape, image.dtype) == (shape, np.uint8):
            return image  # no rule changes an image of the right size
        try:
            with _opened(image) as opened:
                if not isinstance(image, Image.Image | np.ndarray):
                    _check_pixels(*opened.size)
                return self._square(opened)
        except BadRecord as error:
            raise BadRecord(error.kind, f'{_named(image)}: {error}') from error
        except Exception as error:  # Pillow's decoders raise many types
            unknown = isinstance(error, UnidentifiedImageError)
            reason = 'unknown format' if unknown else headers.one_line(error)
            message = f'{_named(image)}: not a readable image ({reason}).'
            kind = _kind(image, error)
            raise (BadRecord(kind, message) if kind else ValueError(message)) from error

    def _square(self, image: Image.Image) -> np.ndarray:
        transparent = 'A' in image.getbands() or image.info.get('transparency') is not None
        if self.rgb == 'white' and transparent:
            white = Image.new('RGBA', image.size, 'white')
            image = Image.alpha_composite(white, image.convert('RGBA'))
        if self.rgb != 'after':
            image = image.convert('RGB')
        resized = self._resized(*image.size)
        _check_pixels(*resized)  # of two pixels by a million, 'shortest' would make a giant
        image = image.resize(resized, _INTERPOLATIONS[self.interpolation])
        left, top = map(self._first, image.size)
        box = left, top, left + self.size, top + self.size
        return np.asarray(image.crop(box).convert('RGB'))

    def _first(self, side: int) -> int:
        """Returns where the output begins on a side; below zero where pixels must be added."""
        excess = side - self.size
        if excess < 0:
            return -(-excess // 2)
        return excess // 2 if self.crop == 'down' else round(excess / 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height of a resized image, before it is cut or padded."""
        size = self.size
        if self.resize == 'squash':
            return size, size
        if self.resize == 'longest':
            ratio = max(width, height) / size
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        short = min(width, height)
        return int(size * width / short), int(size * height / short)

    @property
    def card(self) -> dict:
        """The fields as JSON values; `Preprocess.from_card(card)` makes the same rule again."""
        return {**dataclasses.asdict(self), 'mean': list(self.mean), 'std': list(self.std)}

    @classmethod
    def from_card(cls, card: dict) -> 'Preprocess':
        """Makes the rule that a checkpoint's card describes; what it does not say is OpenAI's."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in card:
            lookup.check(name, known, what='preprocess: field of the card')
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in card.items()})


def _resample(
    image: np.ndarray, box: Box, out: np.ndarray, *, averaged: bool = False
) -> np.ndarray:
    """Resizes a part of an image into `out` [size, size, 3], bicubic and without aliasing.

    The part may begin and end between pixels; `averaged` says that each of them stands for several
    of the original. It is halved by averaging as often as it can be, then smoothed by as much as it
    is still too large, then sampled.
    """
    size = len(out)
    left, top = math.floor(box.left), math.floor(box.top)
    x, y = (_reduction(side / size) for side in (box.width, box.height))
    # Whole blocks, if need be with pixels from outside of the part.
    right = left + x * math.ceil((box.left + box.width - left) / x)
    bottom = top + y * math.ceil((box.top + box.height - top) / y)
    image = image[top:bottom, left:right]
    if max(x, y) > 1:
        height, width = image.shape[0] // y, image.shape[1] // x
        image = cv2.resize(
            image[: height * y, : width * x], (width, height), interpolation=cv2.INTER_AREA
        )
    place = Box((box.left - left) / x, (box.top - top) / y, box.width / x, box.height / y)
    across, down = place.width / size, place.height / size
    image = _smooth(image, (across, down), averaged=averaged or max(x, y) > 1)
    if place == (0, 0, image.shape[1], image.shape[0]):
        return cv2.resize(image, (size, size), out, interpolation=cv2.INTER_CUBIC)
    # Pixels are squares here, and points in their centers there.
    to_image = np.array(
        [[across, 0, place.left + across / 2 - 0.5], [0, down, place.top + down / 2 - 0.5]]
    )
    return cv2.warpAffine(
        image,
        to_image,
        (size, size),
        out,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _reduction(shrink: float) -> int:
    """Returns by which power of two a side that must shrink so much is divided beforehand.

    At least 1.5 times the pixels needed are left. With fewer, details are lost: JPEGs decoded to
    the very size are 3 to 4 in 255 off. At more than 3 times, three taps smooth too little. With
    this rule, parts of 16 photographs, some of grass, were 0.4 to 1.6 off, and 3.1 at worst.
    """
    return 2 ** max(0, math.ceil(math.log2(shrink / 3)))


def _smooth(image: np.ndarray, shrink: tuple[float, float], *, averaged: bool) -> np.ndarray:
    """Takes out what is too fine for an image that will be so many times smaller across and down.

    The weight of a neighbor, 0.22 (shrink - 1), was fitted to Pillow's filter. Of patterns as fine
    as pixels, which averages no longer have, it would leave too much where little is shrunk.
    """
    x, y = (
        min(1 / 3, 0.22 * (s if averaged else max(s, math.sqrt(s))))
        for s in (max(0.0, times - 1) for times in shrink)
    )
    if max(x, y) < 0.04:
        return image
    taps = [np.array([w, 1 - 2 * w, w]) for w in (x, y)]
    return cv2.sepFilter2D(image, -1, *taps, borderType=cv2.BORDER_REPLICATE)


def _check_inside(box: Box, height: int, width: int) -> None:
    if (
        min(box.left, box.top) < 0
        or min(box.width, box.height) < 1
        or box.left + box.width > width
        or box.top + box.height > height
    ):
        raise ValueError(f'{box} is not a part of an image of {width} x {height} pixels.')


def _stored(box: Box, header: headers.Header) -> Box:
    """Where a part of the upright image lies in the image as it is stored."""
    height, width = header.upright
    left, top, w, h = box
    if header.orientation in _MIRRORED:
        left = width - left - w
    if header.orientation in _UPSIDE_DOWN:
        top = height - top - h
    return Box(top, left, h, w) if header.orientation > 4 else Box(left, top, w, h)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as EXIF asks for, so that it stands upright."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _opened(image) -> contextlib.AbstractContextManager[Image.Image]:
    """Opens what `Preprocess` takes; an image that the caller opened stays open."""
    if isinstance(image, Image.Image):
        return contextlib.nullcontext(image)
    if isinstance(image, np.ndarray):
        return contextlib.nullcontext(Image.fromarray(_rgb(image)))
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, str | os.PathLike):
        return Image.open(image)
    raise ValueError('expected is a PIL image, a path, encoded bytes or a uint8 array')


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        headers.check_size(height, width)


def _kind(image, error: Exception) -> str | None:
    """Returns what is wrong with an image that Pillow did not take; None if it is none at all."""
    if not isinstance(image, bytes | str | os.PathLike | Image.Image):
        return None
    if isinstance(error, UnidentifiedImageError):
        return 'empty' if image == b'' else 'not_an_image'
    if isinstance(error, FileNotFoundError):
        return 'no_image'
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return 'too_large'
    return 'truncated' if 'truncated' in str(error).lower() else 'damaged'


def _named(image) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, bytes):
        return f'{len(image)} bytes that begin with {image[:8]!r}'
    return getattr(image, 'filename', '') or type(image).__name__


def _rgb(array: np.ndarray) -> np.ndarray:
    """Returns uint8 [height, width, 3]; one channel is gray; ValueError for anything else."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f'an image array must be uint8 [height, width, 3], this one is {array.dtype} {array.shape}.'
    )
