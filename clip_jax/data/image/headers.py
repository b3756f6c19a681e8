"""Headers of encoded images: format, size and EXIF orientation, without decoding."""

import struct
from typing import cast

from PIL import Image, UnidentifiedImageError

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import opening
from clip_jax.data.image.opening import MAX_PIXELS, Header, check_size, cut_off
from clip_jax.runtime.messages import one_line

# The first bytes of image files.
_BEGINNINGS = (b'GIF8', b'RIFF', b'II*\0', b'MM\0*', b'\xff\xd8', b'\x89PNG')
_PNG = b'\x89PNG\r\n\x1a\n'
_ORIENTATION = 0x0112  # the tag's number in EXIF
# Frame markers of JPEG: baseline, progressive and so on; three numbers in the range are others.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME = struct.Struct('>HH')  # height, width
_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))  # markers that no length follows


def read(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads the header of an encoded image.

    Raises BadRecord if the bytes are not an image, or it is too small, or has more than
    `max_pixels`.
    """
    if not data:
        raise BadRecord('empty', 'zero bytes; expected an image')
    try:
        if data.startswith(b'\xff\xd8\xff'):
            return _jpeg(data, max_pixels)
        if data.startswith(_PNG):
            return _png(data, max_pixels)
    except (struct.error, IndexError):  # the bytes end within the header
        raise cut_off(data) from None
    return _by_pillow(data, max_pixels)


def _jpeg(data: bytes, max_pixels: int) -> Header:
    """Reads the segments of a JPEG up to the frame header (ITU T.81, annex B); EXIF comes first."""
    orientation, at = 1, 2
    while True:
        at = data.find(b'\xff', at)  # decoders also skip bytes between segments
        if at < 0:
            raise cut_off(data)
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        at += 2
        if marker in _FRAMES:
            height, width = _FRAME.unpack_from(data, at + 3)
            check_size(height, width, max_pixels)
            return Header('JPEG', height, width, orientation)
        if marker in _BARE:
            continue
        if marker in (0xDA, 0xD9):
            raise BadRecord('damaged', 'not a readable image: a JPEG without a frame header')
        if marker == 0xE1 and data.startswith(b'Exif\0\0', at + 2) and orientation == 1:
            orientation = _exif(data[at + 8 : at + (data[at] << 8 | data[at + 1])])
        at += max(2, data[at] << 8 | data[at + 1])


def _png(data: bytes, max_pixels: int) -> Header:
    """Reads the chunks of a PNG up to the last one; its size is checked before that."""
    width, height = struct.unpack_from('>II', data, 16)
    check_size(height, width, max_pixels)
    orientation, at = 1, 8
    while True:
        length, kind = struct.unpack_from('>I4s', data, at)
        if kind == b'IEND':
            if len(data) < at + 12:  # the checksum after it
                raise cut_off(data)
            return Header('PNG', height, width, orientation)
        if kind == b'eXIf':
            orientation = _exif(data[at + 8 : at + 8 + length])
        at += length + 12


def _exif(tiff: bytes) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if there is none or EXIF is damaged."""
    order = '>' if tiff.startswith(b'MM') else '<'
    try:
        (at,) = struct.unpack_from(order + 'I', tiff, 4)
        (entries,) = struct.unpack_from(order + 'H', tiff, at)
        for start in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + 'HH', tiff, start)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ('I' if kind == 4 else 'H'), tiff, start + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _by_pillow(data: bytes, max_pixels: int) -> Header:
    webp = data.startswith(b'RIFF') and b'WEBP'.startswith(data[8:12])
    if webp and len(data) < 8 + int.from_bytes(data[4:8], 'little'):
        raise cut_off(data)
    try:
        with opening.open_image(data, max_pixels=max_pixels) as image:
            width, height = image.size
            # Pillow applies the orientation of TIFF itself.
            orientation = 1 if image.format == 'TIFF' else image.getexif().get(_ORIENTATION, 1)
            kind = cast(str, image.format)  # set in images that were opened
    except BadRecord:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord('too_large', f'{error}; at most {max_pixels:,} are decoded') from error
    except Exception as error:  # Pillow's readers raise many types
        known = data.startswith(_BEGINNINGS) or opening.brand(data)
        if not known or (data.startswith(b'RIFF') and not webp):
            raise BadRecord(
                'not_an_image',
                f'not a readable image: {len(data):,} bytes that begin with {data[:8]!r}',
            ) from error
        if len(data) < 800:  # less than a header with the palette after it
            raise cut_off(data) from error
        unknown = isinstance(error, UnidentifiedImageError)
        reason = 'its header is damaged' if unknown else one_line(error)
        raise BadRecord('damaged', f'not a readable image: {reason}') from error
    check_size(height, width, max_pixels)
    return Header(kind, height, width, orientation if orientation in range(1, 9) else 1)
