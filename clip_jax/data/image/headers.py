"""Headers of encoded images: format, size and EXIF orientation, without decoding."""

import functools
import io
import struct
from typing import NamedTuple, cast

from PIL import Image, UnidentifiedImageError

from clip_jax.data.errors import BadRecord
from clip_jax.runtime.messages import one_line

MIN_SIDE = 2  # pixels; smaller images are tracking pixels or broken downloads
# A header of a few bytes can claim any number of pixels. Forty million take 120 MB; most cameras
# have fewer.
MAX_PIXELS = 40_000_000

# Pillow could open more formats, some by starting other programs (EPS).
_FORMATS = ('GIF', 'WEBP', 'BMP', 'TIFF', 'AVIF', 'JPEG2000', 'PPM')
# The first bytes of image files.
_BEGINNINGS = (b'GIF8', b'RIFF', b'II*\0', b'MM\0*', b'\xff\xd8', b'\x89PNG')
_PNG = b'\x89PNG\r\n\x1a\n'
_ORIENTATION = 0x0112  # the tag's number in EXIF
# Frame markers of JPEG: baseline, progressive and so on; three numbers in the range are others.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME = struct.Struct('>HH')  # height, width
_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))  # markers that no length follows


class Header(NamedTuple):
    """Format, size and orientation of an image as it is stored."""

    format: str  # 'JPEG', 'PNG' or another of Pillow's names
    height: int
    width: int
    orientation: int = 1  # EXIF's, 1 to 8

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def read(data: bytes) -> Header:
    """Reads the header of an encoded image.

    Raises BadRecord if the bytes are not an image, or it is too small or too large.
    """
    if not data:
        raise BadRecord('empty', 'zero bytes; expected an image')
    try:
        if data.startswith(b'\xff\xd8\xff'):
            return _jpeg(data)
        if data.startswith(_PNG):
            return _png(data)
    except (struct.error, IndexError):  # the bytes end within the header
        raise cut_off(data) from None
    return _by_pillow(data)


def check_size(height: int, width: int) -> None:
    """Raises BadRecord for images that are too small, or too large to decode."""
    if min(height, width) < MIN_SIDE:
        raise BadRecord(
            'too_small', f'{width} x {height} pixels; expected sides of at least {MIN_SIDE}'
        )
    if height * width > MAX_PIXELS:
        raise BadRecord(
            'too_large',
            f'{width} x {height} = {height * width:,} pixels; at most {MAX_PIXELS:,} are decoded',
        )


def cut_off(data: bytes) -> BadRecord:
    """Returns the error for a truncated image."""
    return BadRecord('truncated', f'not a readable image: it ends early, after {len(data):,} bytes')


def open_with_pillow(data: bytes, *formats: str) -> Image.Image:
    """Opens bytes without decoding them; by default in any format but JPEG and PNG."""
    return Image.open(io.BytesIO(data), formats=formats or _known())


def _jpeg(data: bytes) -> Header:
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
            check_size(height, width)
            return Header('JPEG', height, width, orientation)
        if marker in _BARE:
            continue
        if marker in (0xDA, 0xD9):
            raise BadRecord('damaged', 'not a readable image: a JPEG without a frame header')
        if marker == 0xE1 and data.startswith(b'Exif\0\0', at + 2) and orientation == 1:
            orientation = _exif(data[at + 8 : at + (data[at] << 8 | data[at + 1])])
        at += max(2, data[at] << 8 | data[at + 1])


def _png(data: bytes) -> Header:
    """Reads the chunks of a PNG up to the last one; its size is checked before that."""
    width, height = struct.unpack_from('>II', data, 16)
    check_size(height, width)
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


def _by_pillow(data: bytes) -> Header:
    webp = data.startswith(b'RIFF') and b'WEBP'.startswith(data[8:12])
    if webp and len(data) < 8 + int.from_bytes(data[4:8], 'little'):
        raise cut_off(data)
    try:
        with open_with_pillow(data) as image:
            width, height = image.size
            # Pillow applies the orientation of TIFF itself.
            orientation = 1 if image.format == 'TIFF' else image.getexif().get(_ORIENTATION, 1)
            kind = cast(str, image.format)  # set in images that were opened
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord('too_large', f'{error}; at most {MAX_PIXELS:,} are decoded') from error
    except Exception as error:  # Pillow's readers raise many types
        if not data.startswith(_BEGINNINGS) or (data.startswith(b'RIFF') and not webp):
            raise BadRecord(
                'not_an_image',
                f'not a readable image: {len(data):,} bytes that begin with {data[:8]!r}',
            ) from error
        if len(data) < 800:  # less than a header with the palette after it
            raise cut_off(data) from error
        unknown = isinstance(error, UnidentifiedImageError)
        reason = 'its header is damaged' if unknown else one_line(error)
        raise BadRecord('damaged', f'not a readable image: {reason}') from error
    check_size(height, width)
    return Header(kind, height, width, orientation if orientation in range(1, 9) else 1)


@functools.cache
def _known() -> tuple[str, ...]:
    """The formats that this version of Pillow supports; AVIF came late."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
