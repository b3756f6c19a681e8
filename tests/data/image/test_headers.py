"""headers: size and orientation without decoding, as decoders see them; what is none is named."""

import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.errors import BAD_RECORD_KINDS, BadRecord
from clip_jax.data.image import headers, upright
from clip_jax.data.preprocess import Preprocess

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000')


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width: int = 60, height: int = 40, mode: str = 'RGB') -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    array = np.stack([columns * 3, rows * 5, columns + rows], axis=2) % 256
    return Image.fromarray(array.astype(np.uint8)).convert(mode)


def kind_of(data: bytes) -> str:
    """The kind of BadRecord that a header is; its message is one line."""
    with pytest.raises(BadRecord) as error:
        headers.read(data)
    assert '\n' not in str(error.value)
    assert error.value.kind in BAD_RECORD_KINDS
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    return error.value.kind


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('size', [(60, 40), (2, 300), (513, 257)])
def test_sizes_are_those_of_the_picture(kind, size):
    data = encode(picture(*size), kind)
    assert headers.read(data).upright == (size[1], size[0])
    assert upright.decode(data).shape == (size[1], size[0], 3)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_changes_what_is_height(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = 'the maker, so that there is more than one entry'
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif)
    want = (60, 40) if orientation > 4 else (40, 60)
    assert headers.read(data).upright == want
    if kind != 'TIFF':  # Pillow turns it
        assert headers.read(data).orientation == orientation


def jpeg_with(segment: bytes) -> bytes:
    """A JPEG with an APP1 segment."""
    data = encode(picture(), 'JPEG')
    return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize(
    ('kind', 'value', 'want'), [(3, 6, 6), (4, 8, 8), (3, 0, 1), (3, 9, 1), (3, 77, 1)]
)
def test_orientation_in_either_byte_order(order, kind, value, want):
    tiff = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8)
    entry = struct.pack(order + 'HHHI', 1, 0x0112, kind, 1)
    entry += struct.pack(order + ('H' if kind == 3 else 'I'), value)
    data = jpeg_with(b'Exif\0\0' + tiff + entry)
    assert headers.read(data).orientation == want


@pytest.mark.parametrize('exif', [b'', b'II*\0', b'MM\0*\xff\xff\xff\xff', b'rubbish' * 9])
def test_damaged_exif_does_no_harm(exif):
    header = headers.read(jpeg_with(b'Exif\0\0' + exif))
    assert header.orientation == 1
    assert header.upright == (40, 60)


@pytest.mark.parametrize('between', [b'\xff', b'\xff\xff\xff', b'\0\1\2', b'\xff\x00', b'\xff\xd0'])
def test_filling_and_rubbish_between_segments_is_skipped(between):
    data = encode(picture(), 'JPEG')
    for following in (b'\xff\xdb', b'\xff\xc0'):
        at = data.index(following)
        assert headers.read(data[:at] + between + data[at:]).upright == (40, 60)


def test_a_thumbnail_does_not_count():
    thumbnail = encode(picture(8, 6), 'JPEG')
    assert headers.read(jpeg_with(b'Exif\0\0II*\0' + thumbnail)).upright == (40, 60)


@pytest.mark.parametrize(
    'data',
    [
        b'junk',
        b'BMW drives',
        b'RIFF\xff\xff\0\0WAVEfmt ',
        b'<html><body>Not found</body></html>',
        bytes(range(7, 90)),
        b'\0' * 1000,
    ],
)
def test_what_begins_like_no_image_is_none(data):
    assert kind_of(data) == 'not_an_image'


def test_programs_that_draw_are_no_images():
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'
    assert Image.open(io.BytesIO(eps)).format == 'EPS'
    assert kind_of(eps) == 'not_an_image'


def test_no_bytes_are_empty():
    assert kind_of(b'') == 'empty'


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'GIF'])
@pytest.mark.parametrize('length', [5, 12, 20])
def test_headers_may_be_cut_off(kind, length):
    assert kind_of(encode(picture(), kind)[:length]) == 'truncated'


def test_pngs_and_webps_know_their_length():
    for kind in ('PNG', 'WEBP'):
        data = encode(picture(), kind)
        for missing in (1, 4, 13, len(data) // 2):
            assert kind_of(data[:-missing]) == 'truncated', (kind, missing)
        assert headers.read(data + b'more').upright == (40, 60)


def test_a_jpeg_that_has_no_frame_is_damaged():
    data = encode(picture(), 'JPEG')
    frame = data.index(b'\xff\xc0')
    scan = data.index(b'\xff\xda')
    assert kind_of(data[:frame] + data[scan:]) == 'damaged'


@pytest.mark.parametrize('kind', FORMATS)
def test_a_picture_of_one_pixel_is_too_small(kind):
    assert kind_of(encode(picture(1, 1), kind)) == 'too_small'
    assert kind_of(encode(picture(1, 50), kind)) == 'too_small'


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    compress = zlib.compressobj()
    rows = b''.join(compress.compress(bytes(3 * side + 1)) for _ in range(side)) + compress.flush()
    size = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def test_bombs_are_refused_by_their_header_and_at_once():
    data = bomb(10_000)
    assert 280_000 < len(data) < 300_000
    assert kind_of(data) == 'too_large'
    for use in (upright.measure, upright.decode, Preprocess(224)):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            with pytest.raises(BadRecord, match=r'= 100,000,000 .* at most 89,478,485'):
                use(data)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.005


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_headers_cost_next_to_nothing(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(224, 224), kind, exif=exif)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            headers.read(data)
        seconds.append((time.perf_counter() - start) / 100)
    assert min(seconds) < 15e-6
