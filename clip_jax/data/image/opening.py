"""Opens images with Pillow: only in the formats that may be opened, and with their size checked.

All images of data sets that Pillow reads are opened here.
"""

import contextlib
import functools
import io
import os
import zlib
from typing import Any, NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError, features

from clip_jax.data.errors import BadRecord

MIN_SIDE = 2  # pixels; smaller images are tracking pixels or broken downloads
# A header of a few bytes can claim any number of pixels. This is Pillow's own limit: 268 MB as RGB.
MAX_PIXELS = 89_478_485
MOST_PIXELS = 2**30  # OpenCV decodes no more

# Pillow could open more formats, some by starting other programs (EPS) and some with an image of
# any size in one that claims to be small (ICO). AVIF and HEIF may not be there.
_FORMATS = ['JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF']
_INSTALL = {'AVIF': "pip install 'pillow>=11.3'", 'HEIF': "pip install 'clipax[heif]'"}
_PNG = b'\x89PNG\r\n\x1a\n'
# Brands at the beginning of the file (ISO/IEC 23008-12, annex B; AV1 Image File Format, section 6).
_BRANDS = {
    'AVIF': {b'avif', b'avis'},
    'HEIF': {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'},
}


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


def check_max_pixels(max_pixels: int) -> int:
    """Returns a limit on the pixels of an image; ValueError if it is none."""
    if not isinstance(max_pixels, int) or not 0 < max_pixels <= MOST_PIXELS:
        raise ValueError(f'max_pixels is {max_pixels}; expected 1 to {MOST_PIXELS:,}')
    return max_pixels


def check_size(height: int, width: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises BadRecord for images that are too small, or too large to decode."""
    if min(height, width) < MIN_SIDE:
        raise BadRecord(
            'too_small', f'{width} x {height} pixels; expected sides of at least {MIN_SIDE}'
        )
    if height * width > max_pixels:
        raise BadRecord(
            'too_large',
            f'{width} x {height} = {height * width:,} pixels; at most {max_pixels:,} are decoded '
            '(the option max_pixels)',
        )


def cut_off(data: bytes) -> BadRecord:
    """Returns the error for a truncated image."""
    return BadRecord('truncated', f'not a readable image: it ends early, after {len(data):,} bytes')


def open_image(file: bytes | str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image, without decoding it, in one of the formats that training reads.

    Args:
        file: the encoded image, or the path of a file.
        max_pixels: images with more are refused.

    Raises:
        BadRecord: if it has too many pixels, or its decoder is not installed.
        UnidentifiedImageError, OSError: if it is not an image of these formats.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's limit is the process's
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_known())
    except UnidentifiedImageError:
        _check_decoder(file)
        raise
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        check_size(height, width, max_pixels)
    if image.format == 'PNG':
        _check_checksums(image)
    return image


def _check_checksums(image: ImageFile.ImageFile) -> None:
    """Raises BadRecord for a PNG with damaged pixels, whose checksums Pillow does not compare."""
    file: Any = image.fp
    place = file.tell()
    file.seek(len(_PNG))
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind != b'IDAT':
            file.seek(size + 4, os.SEEK_CUR)
            continue
        crc, checksum = zlib.crc32(file.read(size), zlib.crc32(kind)), file.read(4)
        # Of a truncated file Pillow says that it is one.
        if len(checksum) == 4 and crc != int.from_bytes(checksum):
            image.close()
            raise BadRecord('damaged', 'the checksum of its pixels is wrong')
    file.seek(place)


def is_known(format: str) -> bool:
    """Whether images of a format can be opened here."""
    return format in _known()


def brand(data: bytes) -> str:
    """Returns 'AVIF' or 'HEIF' for data that begins like one, otherwise ''."""
    if data[4:8] != b'ftyp':
        return ''
    found = {data[i : i + 4] for i in range(8, min(int.from_bytes(data[:4]), 64), 4)}
    return next((name for name, brands in _BRANDS.items() if found & brands), '')


def how_to_install(format: str) -> str:
    """Says how to install the decoder of a format that may be missing."""
    return f'install the decoder of {format} images: {_INSTALL[format]}'


def _check_decoder(file: bytes | str | os.PathLike) -> None:
    """Raises BadRecord for an image of a format that would be known with another package."""
    if isinstance(file, bytes):
        format = brand(file)
    else:
        with open(file, 'rb') as opened:
            format = brand(opened.read(64))
    if format and not is_known(format):
        raise BadRecord('no_decoder', f'{format} cannot be read; {how_to_install(format)}')


@functools.cache
def _known() -> tuple[str, ...]:
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    missing = set() if features.check('avif') else {'AVIF'}
    return tuple(name for name in _FORMATS if name in Image.OPEN and name not in missing)
