"""pixels: every format is decoded right, as Pillow does it where that is right; no half images."""

import io
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from clip_jax.data import augment
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import decoders, headers, upright


def encode(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(height: int = 90, width: int = 120, seed: int = 0) -> Image.Image:
    """Colors that change slowly, with some noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return Image.fromarray(np.clip(large + rng.integers(-6, 7, large.shape), 0, 255).astype('u1'))


def with_alpha(image: Image.Image) -> Image.Image:
    ramp = np.tile(np.arange(image.width, dtype=np.uint8), (image.height, 1))
    return Image.merge('RGBA', (*image.split(), Image.fromarray(ramp)))


def sixteen_bits(image: np.ndarray) -> bytes:
    """A PNG whose upper bytes are the image's."""
    return cv2.imencode('.png', image.astype(np.uint16) * 256 + 99)[1].tobytes()


OTHER = photo(seed=1)
# What must come out equal to Pillow's own conversion, or nearly: JPEG decoders may round.
WHOLE = {
    'png': encode(photo()),
    'png gray': encode(photo().convert('L')),
    'png gray and alpha': encode(with_alpha(photo()).convert('LA')),
    'png rgba': encode(with_alpha(photo())),
    'png palette': encode(photo().quantize(32)),
    'png palette with a clear color': encode(photo().quantize(32), transparency=3),
    'png palette with alpha': encode(with_alpha(photo()).quantize(32)),
    'png one bit': encode(photo().convert('1')),
    'png animated': encode(photo(), save_all=True, append_images=[OTHER]),
    'png animated, first image apart': encode(
        photo(), save_all=True, append_images=[OTHER], default_image=True
    ),
    'gif': encode(photo(), 'GIF'),
    'gif animated': encode(photo(), 'GIF', save_all=True, append_images=[OTHER]),
    'webp': encode(photo(), 'WEBP'),
    'webp lossless': encode(photo(), 'WEBP', lossless=True),
    'webp rgba': encode(with_alpha(photo()), 'WEBP', lossless=True, exact=True),
    'webp animated': encode(photo(), 'WEBP', save_all=True, append_images=[OTHER]),
    'bmp': encode(photo(), 'BMP'),
    'tiff': encode(photo(), 'TIFF'),
    'tiff compressed': encode(photo(), 'TIFF', compression='tiff_lzw'),
    'jpeg': encode(photo(), 'JPEG'),
    'jpeg gray': encode(photo().convert('L'), 'JPEG'),
    'jpeg progressive': encode(photo(), 'JPEG', progressive=True),
    'jpeg 4:4:4': encode(photo(), 'JPEG', subsampling=0),
    'jpeg 4:2:2': encode(photo(), 'JPEG', subsampling=1),
    'jpeg rgb': encode(photo(), 'JPEG', keep_rgb=True),
    'jpeg restarting': encode(photo(), 'JPEG', restart_marker_blocks=3),
    'jpeg cmyk': encode(photo().convert('CMYK'), 'JPEG'),
}


@pytest.mark.parametrize('name', WHOLE)
def test_every_format_is_decoded_as_pillow_does(name):
    data = WHOLE[name]
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert('RGB')).astype(int)
    got = upright.decode(data)
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    assert upright.measure(data) == want.shape[:2]
    assert np.abs(got - want).max() <= (3 if 'jpeg' in name else 0)


@pytest.mark.parametrize('name', WHOLE)
def test_parts_are_those_of_the_whole(name):
    data = WHOLE[name]
    box = augment.Box(11, 7, 101, 80)
    for size in (20, 64, 112):
        got = augment.resized_crop(data, box, size).astype(int)
        want = augment.resized_crop(upright.decode(data), box, size)
        assert np.abs(got - want).mean() < 2


def test_cmyk_is_not_shown_inverted():
    data = WHOLE['jpeg cmyk']
    assert b'Adobe' in data
    assert np.abs(upright.decode(data).astype(int) - np.asarray(photo())).mean() < 3


def test_ycck_is_converted_and_not_shown_inverted():
    # Pillow writes no YCCK. Its YCC are of the colors' inks, which Adobe stores inverted, as
    # Pillow does with what it takes for CMYK; the last byte of Adobe's segment says what it is.
    planes = Image.fromarray(255 - np.asarray(photo())).convert('YCbCr').split()
    planes = [Image.fromarray(255 - np.asarray(plane)) for plane in planes]
    stored = Image.merge('CMYK', [*planes, Image.new('L', photo().size, 0)])
    data = bytearray(encode(stored, 'JPEG', quality=100, subsampling=0))
    adobe = data.index(b'Adobe')
    assert data[adobe + 11] == 0
    data[adobe + 11] = 2
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert('RGB')).astype(int)
    got = upright.decode(bytes(data))
    assert np.abs(got - want).mean() < 1
    assert np.abs(got.astype(int) - np.asarray(photo())).mean() < 3


@pytest.mark.parametrize('channels', [1, 3])
def test_of_sixteen_bits_the_upper_eight_count(channels):
    image = np.asarray(photo())[:, :, :channels]
    got = upright.decode(sixteen_bits(image[:, :, ::-1]))
    assert np.abs(got.astype(int) - image).max() <= 1
    gray = Image.fromarray(np.asarray(photo())[:, :, 0].astype(np.uint16) * 256 + 99)
    got = upright.decode(encode(gray, 'TIFF'))
    np.testing.assert_array_equal(got[:, :, 1], np.asarray(photo())[:, :, 0])


def test_odd_subsampling_goes_another_way():
    # Color at a third of the columns: libjpeg decodes it, TurboJPEG's interface does not. That the
    # data was written for something else changes what it shows, not whether it is shown.
    data = bytearray(encode(photo(96, 96), 'JPEG', subsampling=0))
    frame = data.index(b'\xff\xc0')
    assert data[frame + 11] == 0x11
    data[frame + 11] = 0x31
    want = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(upright.decode(bytes(data)), want)


def error_of(data: bytes) -> BadRecord:
    with pytest.raises(BadRecord) as error:
        upright.decode(data)
    assert '\n' not in str(error.value)
    with pytest.raises(BadRecord) as again:
        augment.resized_crop(data, augment.Box(0, 0, 50, 50), 16)
    assert again.value.kind == error.value.kind
    return error.value


@pytest.mark.parametrize('name', ['jpeg', 'jpeg progressive', 'jpeg cmyk', 'png', 'webp', 'gif'])
@pytest.mark.parametrize('share', [0.05, 0.3, 0.7, 0.95, 1.0])
def test_images_that_end_early_are_noticed(name, share):
    data = WHOLE[name]
    error = error_of(data[: int((len(data) - 3) * share)])
    assert error.kind == 'truncated', error


def test_a_jpeg_whose_end_was_mended_is_noticed():
    data = WHOLE['jpeg']
    assert error_of(data[: len(data) // 2] + b'\xff\xd9').kind == 'truncated'


@pytest.mark.parametrize('name', ['jpeg', 'png', 'webp', 'gif', 'bmp', 'tiff'])
def test_bytes_after_the_end_do_no_harm(name):
    data = WHOLE[name]
    np.testing.assert_array_equal(upright.decode(data + b'\r\nmore of it'), upright.decode(data))


def test_rubbish_between_segments_does_no_harm():
    data = WHOLE['jpeg']
    want = upright.decode(data)
    tables, end = data.index(b'\xff\xdb'), len(data) - 2
    for at in (tables, end):
        got = upright.decode(data[:at] + b'\0\1\2' + data[at:])
        assert np.abs(got.astype(int) - want).max() <= 3
    # With it, too, an early end is noticed.
    assert error_of(data[:tables] + b'\0\1\2' + data[tables : end // 2]).kind == 'truncated'


def test_damage_is_noticed():
    png = bytearray(WHOLE['png'])
    png[len(png) // 2] ^= 255  # its checksum says so
    jpeg = bytearray(WHOLE['jpeg restarting'])
    marker = jpeg.index(b'\xff\xd3')
    jpeg[marker + 1] = 0xD6
    webp = bytearray(WHOLE['webp lossless'])
    webp[40:400] = bytes(360)
    for data in (png, jpeg, webp):
        error = error_of(bytes(data))
        assert error.kind == 'damaged'
        assert 'not a readable image' in str(error)


def test_a_header_that_promises_another_size_is_not_believed():
    gif = WHOLE['gif']
    assert upright.measure(gif) == (90, 120)
    header = headers.read(gif)._replace(width=121)
    with pytest.raises(BadRecord, match=r'120 x 90 pixels, its header says 121 x 90'):
        decoders.decode(gif, header)


def test_decoding_lets_other_threads_run():
    data = encode(photo(1500, 2000), 'JPEG', quality=95)
    box = augment.Box(0, 0, 2000, 1500)
    done = threading.Event()

    def work() -> None:
        for _ in range(10):
            augment.resized_crop(data, box, 700)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not done.is_set():
        turns += 1
        time.sleep(0)
    thread.join()
    # While one holds the GIL, the other has a turn or two between two decodes.
    assert turns > 500
