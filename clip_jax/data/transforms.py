"""What happens to an image and its captions between storage and batch, and then on the device."""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from clip_jax import lookup

# The statistics that published CLIP models normalise with (OpenAI's preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow's: bicubic, bilinear, lanczos, nearest, box, hamming.
_INTERPOLATIONS = {filter.name.lower(): filter for filter in Image.Resampling}


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes an image for training to uint8 RGB [height, width, 3]; ValueError if unreadable.

    EXIF orientation is applied, so that pictures stand upright, as their captions say; `Preprocess`
    ignores it, as the published evaluation rule does. OpenCV decodes without holding the GIL.
    """
    if isinstance(data, np.ndarray):
        return _rgb(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        image = None
    if image is None:
        raise ValueError(f'not a readable image: {len(data)} bytes that begin with {data[:8]!r}.')
    return image


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Cuts out a random part of an image and resizes it to uint8 [size, size, 3].

    The part's share of the area is uniform in `scale`, its aspect ratio (width / height) is
    log-uniform among those in `ratio` with which it fits, its place uniform. (Szegedy et al. 2015,
    section 6. Others draw again until a part fits, and take the centre where none does.)
    """
    height, width = image.shape[:2]
    share, shape, x, y = rng.random(4)
    area = (scale[0] + share * (scale[1] - scale[0])) * height * width
    # width² = area * aspect and height² = area / aspect may not exceed those of the image.
    low, high = (min(max(a, ratio[0]), ratio[1]) for a in (area / height**2, width**2 / area))
    aspect = low * (high / low) ** shape
    # Where the image is longer than any allowed aspect, the largest part is below the drawn area.
    area = min(area, width**2 / aspect, height**2 * aspect)
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
    return _resize(image[top : top + h, left : left + w], size)


def flip(image: np.ndarray, rng: np.random.Generator, p: float) -> np.ndarray:
    """Mirrors an image left to right with probability `p`."""
    return image[:, ::-1] if rng.random() < p else image


def choose_text(texts: Sequence[str], rng: np.random.Generator) -> str:
    """Returns one of the texts, all equally likely; ValueError if there is none."""
    if not texts:
        raise ValueError('no text belongs to this image.')
    return texts[rng.integers(len(texts))]


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std: uint8 [..., 3] to float32, on the device."""
    images = jnp.asarray(images, jnp.float32) / 255
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a model wants its images in evaluation, equal to the published rule in every bit.

    `resize`: 'shortest' (OpenAI, open_clip) resizes the shortest side to `size` and cuts out the
    centre, 'squash' (SigLIP) resizes both sides, 'longest' (open_clip) resizes the longest side and
    pads with zeros. `rgb`: colours become RGB 'after' that, which happens in the image's own mode
    (OpenAI, open_clip), or 'before' it (`do_convert_rgb` of Hugging Face's transformers), or before
    it and on 'white' (the same since transformers 5.22); the others drop transparency. `crop`: of
    an odd number of columns to cut, the half on the left is rounded to 'even' (OpenAI, open_clip)
    or 'down' (transformers). EXIF orientation is ignored. Normalise with `mean` and `std` after it.
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
        try:
            with _opened(image) as opened:
                return self._square(opened)
        except Exception as error:  # Pillow's decoders raise many types
            unknown = isinstance(error, UnidentifiedImageError)
            reason = 'unknown format' if unknown else error
            raise ValueError(f'{_named(image)}: not a readable image ({reason}).') from error

    def _square(self, image: Image.Image) -> np.ndarray:
        transparent = 'A' in image.getbands() or image.info.get('transparency') is not None
        if self.rgb == 'white' and transparent:
            white = Image.new('RGBA', image.size, 'white')
            image = Image.alpha_composite(white, image.convert('RGBA'))
        if self.rgb != 'after':
            image = image.convert('RGB')
        image = image.resize(self._resized(*image.size), _INTERPOLATIONS[self.interpolation])
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


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to [size, size, 3]: bicubic when enlarging, without aliasing when shrinking."""
    # Averaging blocks of k x k whole pixels takes a tenth of the time of averaging over areas with
    # fractional borders, and after a slight resize to k * size it is as near to an exact filter.
    k = max(1, math.ceil(max(image.shape[:2]) / (1.25 * size)))
    interpolation = cv2.INTER_LINEAR if k > 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, (k * size, k * size), interpolation=interpolation)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if k > 1 else image


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


def _named(image) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, bytes):
        return f'{len(image)} bytes that begin with {image[:8]!r}'
    return getattr(image, 'filename', '') or type(image).__name__


def _rgb(array: np.ndarray) -> np.ndarray:
    """Returns uint8 [height, width, 3]; one channel is grey; ValueError for anything else."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)):
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f'an image array must be uint8 [height, width, 3], this one is {array.dtype} {array.shape}.'
    )
