"""opening: one function opens images, in few formats, and their size is checked before decoding."""

import io
import pathlib
import re
import struct

import numpy as np
import pytest
from PIL import Image
from support.pictures import encode, smooth

import clip_jax
from clip_jax.data.augment import Box, resized_crop
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import headers, opening, upright
from clip_jax.data.preprocess import Preprocess

pillow_heif = pytest.importorskip('pillow_heif')

READERS = {
    'measure': upright.measure,
    'decode': upright.decode,
    'preprocess': Preprocess(32),
}


def kind(read, data) -> str:
    with pytest.raises(BadRecord) as error:
        read(data)
    assert '\n' not in str(error.value)
    return error.value.kind


def test_images_are_opened_in_one_place():
    package = pathlib.Path(clip_jax.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob('*.py')
        if re.search(r'\bImage\.open\(', path.read_text())
    ]
    assert found == ['data/image/opening.py']


def ico_bomb() -> bytes:
    """An icon that says 16 x 16 and holds a PNG of 900 x 900."""
    png = encode(np.zeros((900, 900), np.uint8))
    entry = struct.pack('<BBBBHHII', 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack('<HHH', 0, 1, 1) + entry + png


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n'


@pytest.mark.parametrize('read', READERS.values(), ids=READERS)
def test_formats_that_could_do_harm_are_no_images(read, tmp_path, monkeypatch):
    def load(self, *_, **__):
        raise AssertionError('decoded')

    for name, data in ('EPS', EPS), ('ICO', ico_bomb()):
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == name
            monkeypatch.setattr(type(image), 'load', load)
        assert kind(read, data) == 'not_an_image'
    path = tmp_path / 'x.jpg'
    path.write_bytes(EPS)
    assert kind(Preprocess(32), path) == 'not_an_image'


@pytest.mark.parametrize('format', ['AVIF', 'HEIF'])
def test_avif_and_heif_are_read(format):
    pillow_heif.register_heif_opener()
    rows, columns = np.mgrid[:50, :70]
    array = np.stack([columns * 3, rows * 5, columns + rows], axis=2).astype(np.uint8)
    data = encode(array, format, quality=95)
    assert headers.read(data) == headers.Header(format, *array.shape[:2])
    assert np.abs(upright.decode(data).astype(int) - array).mean() < 4
    want = Preprocess(32)(array).astype(int)
    assert np.abs(Preprocess(32)(data) - want).mean() < 4
    assert kind(upright.decode, data[:-300]) in ('truncated', 'damaged')


def test_the_orientation_of_avif_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(smooth(50, 70), 'AVIF', exif=exif)
    assert upright.measure(data) == (70, 50)
    assert upright.decode(data).shape == (70, 50, 3)


@pytest.mark.parametrize('format', ['AVIF', 'HEIF'])
def test_without_a_decoder_the_message_says_what_to_install(format, monkeypatch):
    pillow_heif.register_heif_opener()
    data = encode(smooth(50, 70), format)
    monkeypatch.setattr(opening, '_known', lambda: ('JPEG', 'PNG'))
    for read in READERS.values():
        with pytest.raises(BadRecord, match=f'{format} cannot be read.*pip install') as error:
            read(data)
        assert error.value.kind == 'no_decoder'


def of_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims a size."""
    data = bytearray(encode(smooth(16, 16), 'JPEG'))
    at = data.index(b'\xff\xc0') + 5
    data[at : at + 4] = struct.pack('>HH', height, width)
    return bytes(data)


def test_cameras_are_admitted_and_the_limit_is_an_option():
    for width, height in (8064, 6048), (9504, 6336):
        assert upright.measure(of_size(width, height)) == (height, width)
    large = of_size(12_000, 9_000)
    with pytest.raises(BadRecord, match=r'108,000,000 pixels; at most 89,478,485.*max_pixels'):
        upright.measure(large)
    assert upright.measure(large, max_pixels=108_000_000) == (9_000, 12_000)
    assert kind(lambda data: upright.measure(data, max_pixels=10**6), of_size(1001, 1000)) == (
        'too_large'
    )


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'GIF', 'WEBP', 'AVIF'])
def test_the_limit_holds_wherever_images_are_read(format):
    array = smooth(40, 60)
    data = encode(array, format)
    box = Box(0, 0, 60, 40)
    for limit, fits in (2400, True), (2399, False):
        for read in (
            lambda data, most=limit: upright.measure(data, max_pixels=most),
            lambda data, most=limit: upright.decode(data, max_pixels=most),
            lambda data, most=limit: resized_crop(data, box, 16, max_pixels=most),
            Preprocess(16, max_pixels=limit),
        ):
            if fits:
                read(data)
            else:
                assert kind(read, data) == 'too_large'


@pytest.mark.parametrize('wrong', [0, -1, 2**31, 1e6])
def test_limits_that_are_none(wrong):
    with pytest.raises(ValueError, match=r'max_pixels is .* expected 1 to 1,073,741,824'):
        Preprocess(32, max_pixels=wrong)


def test_a_limit_above_pillows_own_holds(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    data = encode(smooth(40, 60), 'GIF')
    assert upright.decode(data).shape == (40, 60, 3)


@pytest.mark.parametrize('named', [False, True])
def test_a_png_whose_pixels_are_damaged_is_not_read_as_another(tmp_path, named):
    """Pillow decodes it, and does not compare the checksum of pixels."""
    file, pixels = io.BytesIO(), np.arange(768, dtype=np.uint8).reshape(24, 32)
    Image.fromarray(pixels).save(file, 'PNG', compress_level=0)
    right = file.getvalue()
    place = right.index(b'IDAT') + 104
    damaged = right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :]
    (tmp_path / 'x.png').write_bytes(damaged)
    with pytest.raises(BadRecord, match='checksum of its pixels is wrong') as error:
        Preprocess(16)(tmp_path / 'x.png' if named else damaged)
    assert error.value.kind == 'damaged'
    assert Preprocess(16)(right).shape == (16, 16, 3)
