"""The evaluation preprocessing of published models, bit exact, and normalization on the device."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image, UnidentifiedImageError

from clip_jax import lookup
from clip_jax.data import patches
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import arrays, opening, resampling
from clip_jax.data.patches import Patches
from clip_jax.runtime.messages import one_line, printable, shown

# The statistics that published CLIP models normalize with (OpenAI's preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Those of ImageNet, with which CLIPA and OpenVision normalize.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# JPEGs of more pixels are decoded at a reduced size, at least DRAFT times that of the result;
# published programs decode all of them, and fail where memory ends.
EXACT_PIXELS = 40_000_000
DRAFT = 4
_RESIZES = ('shortest', 'squash', 'longest', 'none', 'patches')
# Fields of the resize 'patches', which other cards do not have.
_OF_PATCHES = ('patch_size', 'max_patches')
PILLOW = 'pillow'
_RESAMPLINGS = (PILLOW, 'torchvision', 'float')
# Of mean and std: what scaled values could have; 123.7 is a mean of values from 0 to 255.
_MEAN, _STD = 100, (1e-5, 100)
# Pillow's: bicubic, bilinear, lanczos, nearest, box, hamming.
_INTERPOLATIONS = {filter.name.lower(): filter for filter in Image.Resampling}


def normalize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Normalizes images on the device: (images / 255 - mean) / std.

    Args:
        images: uint8 [..., 3], or Patches of uint8; or float32 with values from 0 to 255.
        mean: mean of each channel, of values from 0 to 1.
        std: standard deviation of each channel.

    Returns:
        float32 of the same shape.
    """
    if isinstance(images, Patches):
        return dataclasses.replace(images, pixels=normalize(images.pixels, mean, std))
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
            longest side and pads with zeros, 'none' only crops or pads (transformers without
            `do_resize`), 'patches' (SigLIP 2 NaFlex) keeps the aspect ratio as far as both sides
            are multiples of `patch_size` and there are at most `max_patches` patches.
        interpolation: one of Pillow's filters, in lowercase.
        mean: mean of each channel.
        std: standard deviation of each channel.
        resize_to: what is resized to if it is not `size`: a side of any length for 'shortest', or
            (height, width) for 'squash'; then the center of `size` is cropped.
        rgb: conversion to RGB 'after' resizing (OpenAI, open_clip), 'before' it (`do_convert_rgb`
            of transformers), or before it on a 'white' background (transformers since 5.22); the
            first two drop transparency.
        crop: an odd number of columns to crop: the half on the left is rounded to 'even' (OpenAI,
            open_clip) or 'down' (transformers, which rounds half of missing columns up).
        gray16: 16-bit grayscale: values above 255 'clip' to white, as published, or 'scale' to 8
            bits, as in training.
        resampling: what resizes: 'pillow'; 'torchvision' bytes as torchvision does (TIPS), or
            'float' as it does floats, which are not rounded (DINOv3); for 'squash' without a crop.
        patch_size: for 'patches', height and width of a patch in pixels.
        max_patches: for 'patches', the number of patches that images are padded to.
        max_pixels: encoded images with more are refused; not part of the card.
    """

    size: int
    resize: str = 'shortest'
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rgb: str = 'after'
    crop: str = 'even'
    gray16: str = 'clip'
    resize_to: int | tuple[int, int] | None = None
    resampling: str = PILLOW
    patch_size: int | None = None
    max_patches: int | None = None
    max_pixels: int = opening.MAX_PIXELS

    def __post_init__(self):
        _check_numbers(self)
        lookup.check(self.resize, _RESIZES, what='preprocess: resize')
        lookup.check(self.rgb, ('after', 'before', 'white'), what='preprocess: rgb')
        lookup.check(self.crop, ('even', 'down'), what='preprocess: crop')
        lookup.check(self.gray16, ('clip', 'scale'), what='preprocess: gray16')
        lookup.check(self.interpolation, _INTERPOLATIONS, what='preprocess: interpolation')
        _check_resampling(self)
        opening.check_max_pixels(self.max_pixels)

    def __call__(self, image: Image.Image | str | os.PathLike | bytes | np.ndarray) -> Any:
        """Preprocesses a PIL image, path, encoded bytes or uint8 array to uint8 [size, size, 3],
        with the resampling 'float' to float32, or with the resize 'patches' to Patches without a
        batch axis.

        Raises BadRecord if it is an image that cannot be used, ValueError for anything else.
        """
        shape = (self.size, self.size, 3)
        right = isinstance(image, np.ndarray) and (image.shape, image.dtype) == (shape, np.uint8)
        if right and self.resize_to is None and self.resize != 'patches':
            return np.asarray(image, self._dtype)  # an image of the right size does not change
        try:
            with _opened(image, self.max_pixels) as opened:
                resized = self._resized(*opened.size)
                self._check_pixels(*resized)  # 'shortest' makes 2 x 1,000,000 pixels huge
                if opened is not image and opened.width * opened.height > EXACT_PIXELS:
                    opened.draft(None, (DRAFT * resized[0], DRAFT * resized[1]))
                if self.gray16 == 'scale':
                    return self._prepared(arrays.eight_bits(opened), resized)
                _warn_if_clipped(opened, image)
                return self._prepared(opened, resized)
        except BadRecord as error:
            raise BadRecord(error.kind, f'{_named(image)}: {error}') from error
        except Exception as error:  # Pillow's decoders raise many types
            unknown = isinstance(error, UnidentifiedImageError)
            reason = 'unknown format' if unknown else one_line(error)
            message = f'{_named(image)}: not a readable image ({reason}).'
            kind = _kind(image, error)
            raise (BadRecord(kind, message) if kind else ValueError(message)) from error

    def blank(self, *shape: int) -> Any:
        """Returns black images as this makes them, with a leading `shape`."""
        if self.resize != 'patches':
            return np.zeros((*shape, self.size, self.size, 3), self._dtype)
        assert self.patch_size and self.max_patches  # as __post_init__ found
        return patches.blank(shape, self.max_patches, self.patch_size)

    @property
    def _dtype(self) -> type:
        return np.float32 if self.resampling == 'float' else np.uint8

    def _prepared(self, image: Image.Image, resized: tuple[int, int]) -> Any:
        transparent = 'A' in image.getbands() or image.info.get('transparency') is not None
        if self.rgb == 'white' and transparent:
            white = Image.new('RGBA', image.size, 'white')
            image = Image.alpha_composite(white, image.convert('RGBA'))
        if self.rgb != 'after':
            image = image.convert('RGB')
        if self.resampling != PILLOW:
            rows = np.asarray(image.convert('RGB'))
            rounded = self.resampling != 'float'
            return resampling.resized(rows, resized, self.interpolation, rounded=rounded)
        if self.resize != 'none':
            image = image.resize(resized, _INTERPOLATIONS[self.interpolation])
        if self.resize == 'patches':
            patches.put(np.asarray(image.convert('RGB')), row := self.blank())
            return row
        left, top = map(self._first, image.size)
        box = left, top, left + self.size, top + self.size
        return np.asarray(image.crop(box).convert('RGB'))

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            opening.check_size(height, width, self.max_pixels)

    def _first(self, side: int) -> int:
        """Returns the offset of the crop on a side; negative if the image is padded."""
        excess = side - self.size
        if self.crop == 'down':
            return excess // 2
        return -(-excess // 2) if excess < 0 else round(excess / 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height after resizing, before the crop or padding."""
        if self.resize == 'none':
            return width, height
        if self.resize == 'patches':
            assert self.patch_size and self.max_patches  # as __post_init__ found
            sides = patches.fitted(height, width, self.patch_size, self.max_patches)
            return sides[1], sides[0]
        to = self.size if self.resize_to is None else self.resize_to
        if self.resize == 'squash':
            return (to[1], to[0]) if isinstance(to, tuple) else (to, to)
        assert isinstance(to, int)  # as __post_init__ found
        if self.resize == 'longest':
            ratio = max(width, height) / to
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        short = min(width, height)
        return int(to * width / short), int(to * height / short)

    @property
    def card(self) -> dict:
        """What a checkpoint's card says of these fields, JSON values; see `from_card`."""
        fields = {name: getattr(self, name) for name in card_fields()}
        fields = {k: v for k, v in fields.items() if v is not None or k not in _OF_PATCHES}
        if self.resampling == PILLOW:
            del fields['resampling']
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_card(cls, card: dict) -> 'Preprocess':
        """Makes a Preprocess from the card of a checkpoint; the defaults are OpenAI's."""
        for name in card:
            lookup.check(name, card_fields(), what='preprocess: field of the card')
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in card.items()
        }
        return cls(**fields)


def _check_numbers(rule: Preprocess) -> None:
    """Raises a ValueError for sizes, mean or std that no preprocessing has."""
    sides = rule.resize_to if isinstance(rule.resize_to, tuple) else (rule.resize_to or 1,)
    if not all(type(side) is int and side > 0 for side in (rule.size, *sides)):
        raise ValueError(
            f'preprocess: size {rule.size!r}, resize_to {rule.resize_to!r}: expected positive '
            'integers'
        )
    pair = isinstance(rule.resize_to, tuple)
    allowed = (1, 2) if rule.resize == 'squash' else (1,) if rule.resize == 'shortest' else ()
    if rule.resize_to is not None and (len(sides) if pair else 1) not in allowed:
        raise ValueError(
            f'preprocess: resize {rule.resize!r} does not take resize_to {rule.resize_to!r}'
        )
    for name in _OF_PATCHES:
        count, wanted = getattr(rule, name), rule.resize == 'patches'
        if wanted != (type(count) is int and count > 0) or (not wanted and count is not None):
            expected = 'a positive integer' if wanted else "None: only 'patches' takes it"
            raise ValueError(
                f'preprocess: resize {rule.resize!r} with {name} {count!r}; expected {expected}'
            )
    for name, low, high in (('mean', -_MEAN, _MEAN), ('std', *_STD)):
        numbers = getattr(rule, name)
        if (
            not isinstance(numbers, Sequence)
            or len(numbers) != 3
            or not all(isinstance(x, int | float) and low <= x <= high for x in numbers)
        ):
            raise ValueError(
                f'preprocess: {name} is {shown(numbers)}; expected three numbers, one for each '
                f'channel, from {low} to {high} (of values from 0 to 1)'
            )


def _check_resampling(rule: Preprocess) -> None:
    """Raises a ValueError for an unknown resampling, or one that the other fields do not allow."""
    what = lookup.check(rule.resampling, _RESAMPLINGS, what='preprocess: resampling')
    if what == PILLOW:
        return
    lookup.check(rule.interpolation, resampling.FILTERS, what=f'preprocess: {what}: interpolation')
    if rule.resize != 'squash' or rule.resize_to is not None:
        raise ValueError(
            f'preprocess: resampling {what!r} with resize {rule.resize!r} and resize_to '
            f"{rule.resize_to!r}; expected 'squash' without a crop"
        )


def card_fields() -> list[str]:
    """Returns the names of the fields of `Preprocess` that are part of a card."""
    return [field.name for field in dataclasses.fields(Preprocess) if field.name != 'max_pixels']


def _opened(image, max_pixels: int) -> contextlib.AbstractContextManager[Image.Image]:
    """Opens an input of `Preprocess`; an image that the caller opened stays open."""
    if isinstance(image, Image.Image):
        return contextlib.nullcontext(image)
    if isinstance(image, np.ndarray):
        return contextlib.nullcontext(Image.fromarray(arrays.as_rgb(image)))
    if isinstance(image, bytes | str | os.PathLike):
        return opening.open_image(image, max_pixels=max_pixels)
    raise ValueError('expected a PIL image, a path, encoded bytes or a uint8 array')


def _warn_if_clipped(image: Image.Image, given: Any) -> None:
    """Warns, once in a process, of a 16-bit image that the published rule makes white."""
    if image.mode.startswith('I;16') and np.asarray(image).max() > 255:
        logging.log_first_n(
            logging.WARNING,
            '%s is 16-bit grayscale. The published preprocessing makes all values above 255 white; '
            'training scales them. To scale them here too, give --gray16=scale (in a config: '
            'preprocess.gray16). There may be more such images; this is said once.',
            1,
            printable(_named(given)),
        )


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
