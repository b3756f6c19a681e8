"""Decoders: the fastest correct one for each format, without the GIL for the common ones.

simplejpeg decodes ordinary JPEGs, OpenCV PNG and WebP, and Pillow the rest: CMYK, odd subsampling,
JPEGs with harmless bytes between segments, and rare formats.
"""

import cv2
import numpy as np
import simplejpeg

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import arrays, opening
from clip_jax.data.image.opening import Header, cut_off
from clip_jax.runtime.messages import one_line


def decode(
    data: bytes, header: Header, *, reduce: int = 1, shrink: float = 1.0
) -> tuple[np.ndarray, int]:
    """Decodes an image as stored, without applying its orientation.

    Args:
        data: the encoded image.
        header: its header.
        reduce: a power of two by which the sides may be divided, rounded up.
        shrink: the factor by which the image will be downsampled afterwards.

    Returns:
        uint8 RGB [height, width, 3] and the factor by which the sides are divided.

    Raises:
        BadRecord: if the image cannot be decoded.
    """
    factor = 1
    if header.format == 'JPEG':
        image, factor = _jpeg(data, header, min(reduce, 8), fast=shrink >= 1.25)
    elif header.format in ('PNG', 'WEBP'):
        image = _by_opencv(data)
    else:
        image = _by_pillow(data, header)
    if image.shape != (-(-header.height // factor), -(-header.width // factor), 3):
        raise BadRecord(
            'damaged',
            f'not a readable image: {image.shape[1]} x {image.shape[0]} pixels, its header says '
            f'{header.width} x {header.height}',
        )
    return image, factor


def _jpeg(data: bytes, header: Header, factor: int, *, fast: bool) -> tuple[np.ndarray, int]:
    height, width = -(-header.height // factor), -(-header.width // factor)
    # The buffer is misaligned: if rows begin at a multiple of 16 bytes, the stores of libjpeg-turbo
    # bypass the caches, and the resize that reads them next takes twice as long.
    memory = np.empty(height * width * 3 + 64, np.uint8)
    buffer = memory[-memory.ctypes.data % 64 + 1 :]
    try:
        image = simplejpeg.decode_jpeg(
            data,
            buffer=buffer,
            min_height=height,
            min_width=width,
            # Fast chroma upsampling, where the difference is invisible.
            fastupsample=fast,
        )
        return image, factor
    except ValueError as error:
        message = one_line(error)
    if 'premature end' in message.lower():
        raise cut_off(data)
    # Extraneous bytes between segments are harmless.
    if 'Corrupt JPEG data' in message and 'extraneous' not in message:
        raise BadRecord('damaged', f'not a readable image: {message}')
    return _by_pillow(data, header), 1


def _by_opencv(data: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        reason = 'OpenCV cannot decode it'
    except cv2.error as error:
        image, reason = None, one_line(error)
    if image is None:
        raise BadRecord('damaged', f'not a readable image: {reason}')
    return image


def _by_pillow(data: bytes, header: Header) -> np.ndarray:
    try:
        with opening.open_image(data, max_pixels=header.height * header.width) as image:
            return np.array(arrays.eight_bits(image).convert('RGB'))
    except BadRecord:
        raise
    except Exception as error:  # Pillow's decoders raise many types
        message = one_line(error)
        if 'truncated' in message.lower() or isinstance(error, EOFError):
            raise cut_off(data) from error
        raise BadRecord('damaged', f'not a readable image: {message}') from error
