"""The evaluation preprocessing of published models, bit exact, and normalization on the device."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import headers
from clip_jax.data.image.arrays import as_rgb
from clip_jax.runtime.messages import one_line

# The statistics that published CLIP models normalize with (OpenAI's preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's: bicubic, bilinear, lanczos, nearest, box, hamming.
_INTERPOLATIONS = {filter.name.lower(): filter for filter in Image.Resampling}


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Normalizes images on the device: (images / 255 - mean) / std.

    Args:
        images: uint8 [..., 3].
        mean: mean of each channel, of values from 0 to 1.
        std: standard deviation of each channel.

    Returns:
        float32 of the same shape.
    """
    images = jnp.asarray(images, jnp.float32) / 255
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Evaluation preprocessing, bit-identical to the published implementations.

    EXIF orientation is ignored, as they do. Normalize with `mean` and `std` afterwards.

    Attributes:
        size: side of the output in pixels.
        resize: 'shortest' (OpenAI, open_clip) resizes the shortest side to `size` and takes the
            center crop, 'squash' (SigLIP) resizes both sides, 'longest' (open_clip) resizes the
            longest side and pads with zeros.
        interpolation: one of Pillow's filters, in lowercase.
        mean: mean of each channel.
        std: standard deviation of each channel.
        rgb: conversion to RGB 'after' resizing (OpenAI, open_clip), 'before' it (`do_convert_rgb`
            of transformers), or before it on a 'white' background (transformers since 5.22); the
            first two drop transparency.
        crop: an odd number of columns to crop: the half on the left is rounded to 'even' (OpenAI,
            open_clip) or 'down' (transformers).
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
        """Preprocesses a PIL image, path, encoded bytes or uint8 array to uint8 [size, size, 3].

        Raises BadRecord if it is an image that cannot be used, ValueError for anything else.
        """
        shape = (self.size, self.size, 3)
        if isinstance(image, np.ndarray) and (image.shape, image.dtype) == (shape, np.uint8):
            return image  # an image of the right size does not change
        try:
            with _opened(image) as opened:
                if not isinstance(image, Image.Image | np.ndarray):
                    _check_pixels(*opened.size)
                return self._square(opened)
        except BadRecord as error:
            raise BadRecord(error.kind, f'{_named(image)}: {error}') from error
        except Exception as error:  # Pillow's decoders raise many types
            unknown = isinstance(error, UnidentifiedImageError)
            reason = 'unknown format' if unknown else one_line(error)
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
        _check_pixels(*resized)  # 'shortest' makes a huge image of 2 x 1,000,000 pixels
        image = image.resize(resized, _INTERPOLATIONS[self.interpolation])
        left, top = map(self._first, image.size)
        box = left, top, left + self.size, top + self.size
        return np.asarray(image.crop(box).convert('RGB'))

    def _first(self, side: int) -> int:
        """Returns the offset of the crop on a side; negative if the image is padded."""
        excess = side - self.size
        if excess < 0:
            return -(-excess // 2)
        return excess // 2 if self.crop == 'down' else round(excess / 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height after resizing, before the crop or padding."""
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
        """The fields as JSON values, for the card of a checkpoint; see `from_card`."""
        return {**dataclasses.asdict(self), 'mean': list(self.mean), 'std': list(self.std)}

    @classmethod
    def from_card(cls, card: dict) -> 'Preprocess':
        """Makes a Preprocess from the card of a checkpoint; the defaults are OpenAI's."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in card:
            lookup.check(name, known, what='preprocess: field of the card')
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in card.items()
        }
        return cls(**fields)


def _opened(image) -> contextlib.AbstractContextManager[Image.Image]:
    """Opens an input of `Preprocess`; an image that the caller opened stays open."""
    if isinstance(image, Image.Image):
        return contextlib.nullcontext(image)
    if isinstance(image, np.ndarray):
        return contextlib.nullcontext(Image.fromarray(as_rgb(image)))
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, str | os.PathLike):
        return Image.open(image)
    raise ValueError('expected a PIL image, a path, encoded bytes or a uint8 array')


def _check_pixels(width: int, height: int) -> None:
    if width * height > headers.MAX_PIXELS:
        headers.check_size(height, width)


def _kind(image, error: Exception) -> str | None:
    """Returns the kind of bad record for an image that Pillow refused; None if it is no image."""
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
