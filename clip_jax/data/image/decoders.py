"""Decoders: each format by the fastest one that is right, without holding the GIL where it counts.

simplejpeg takes the ordinary JPEG, OpenCV PNG and WebP, Pillow all else: CMYK, odd subsampling,
JPEGs with harmless rubbish in between, and rare formats.
"""

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import headers
from clip_jax.data.image.headers import Header, cut_off
from clip_jax.runtime.messages import one_line


def decode(
    data: bytes, header: Header, *, reduce: int = 1, shrink: float = 1.0
) -> tuple[np.ndarray, int]:
    """Decodes to uint8 RGB [height, width, 3] as stored; BadRecord if it cannot be done.

    With `reduce`, a power of two, sides may come divided by the number that is returned, rounded
    up. `shrink` says how many times smaller the picture will be made afterwards.
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
    # Into rows that begin at a multiple of 16 bytes libjpeg-turbo writes past the caches, and who
    # reads them next waits for the memory: with it, a resize after it takes twice as long.
    memory = np.empty(height * width * 3 + 64, np.uint8)
    buffer = memory[-memory.ctypes.data % 64 + 1 :]
    try:
        image = simplejpeg.decode_jpeg(
            data,
            buffer=buffer,
            min_height=height,
            min_width=width,
            # Color at its half resolution, where nobody sees it.
            fastupsample=fast,
        )
        return image, factor
    except ValueError as error:
        said = one_line(error)
    if 'premature end' in said.lower():
        raise cut_off(data)
    # What lies between two segments and belongs to neither does no harm.
    if 'Corrupt JPEG data' in said and 'extraneous' not in said:
        raise BadRecord('damaged', f'not a readable image: {said}')
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
    jpeg = ('JPEG',) if header.format == 'JPEG' else ()
    try:
        with headers.open_with_pillow(data, *jpeg) as image:
            if image.mode.startswith('I;16'):  # Pillow would make white of all that is above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.array(image.convert('RGB'))
    except Exception as error:  # Pillow's decoders raise many types
        said = one_line(error)
        if 'truncated' in said.lower() or isinstance(error, EOFError):
            raise cut_off(data) from error
        raise BadRecord('damaged', f'not a readable image: {said}') from error
