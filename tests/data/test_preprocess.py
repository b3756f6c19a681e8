"""Evaluation preprocessing: equal to the published rule bit for bit."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from support.pictures import encode, noise, smooth

from clip_jax.data import preprocess
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright
from clip_jax.data.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, normalize

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden' / 'preprocess'
golden = pytest.mark.skipif(not GOLDEN.exists(), reason='reference outputs are not on this machine')


@golden
def test_shortest_side_and_center_crop_equal_the_reference_exactly():
    expected = np.load(GOLDEN / 'expected_uint8_crop.npz')
    assert len(expected.files) == 28
    for key in expected.files:
        size, name = key.split('/')
        got = Preprocess(int(size))(GOLDEN / 'images' / name)
        np.testing.assert_array_equal(got, expected[key], err_msg=key)


@golden
def test_squash_equals_the_reference():
    expected = np.load(GOLDEN / 'expected_squash.npz')
    assert len(expected.files) == 28
    half = (0.5, 0.5, 0.5)
    for key in expected.files:
        rule, name = key.split('/')
        preprocess = Preprocess(64, 'squash', rule.removesuffix('64'), half, half)
        got = normalize(preprocess(GOLDEN / 'images' / name), half, half)
        # Neighboring uint8 values are 0.008 apart, so this is equality.
        np.testing.assert_allclose(got.transpose(2, 0, 1), expected[key], atol=1e-6, err_msg=key)


@golden
def test_normalized_crops_equal_the_reference_to_the_rounding_of_float16():
    expected = np.load(GOLDEN / 'expected_float16.npz')
    assert len(expected.files) == 28
    for key in expected.files:
        size, name = key.split('/')
        crop = Preprocess(int(size))(GOLDEN / 'images' / name)
        got = np.asarray(normalize(crop, CLIP_MEAN, CLIP_STD), np.float16)
        np.testing.assert_array_max_ulp(got.transpose(2, 0, 1), expected[key], 1)


def test_the_published_rule_in_small():
    # 100 x 50 to 20: 40 x 20, then columns 10 to 30.
    image = Image.fromarray(noise(50, 100))
    want = np.asarray(image.resize((40, 20), Image.Resampling.BICUBIC))[:, 10:30]
    np.testing.assert_array_equal(Preprocess(20)(image), want)
    # Of five columns too many, two go on the left: half rounds to even.
    wide = noise(8, 13)
    np.testing.assert_array_equal(Preprocess(8)(wide), wide[:, 2:10])
    squashed = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Preprocess(20, 'squash', 'bilinear')(image), squashed)


def test_palette_images_are_resized_before_they_become_rgb():
    image = Image.fromarray(noise(30, 30)).quantize(16)
    colors = {tuple(c) for c in np.asarray(image.convert('RGB')).reshape(-1, 3).tolist()}
    got = Preprocess(17)(image)
    assert {tuple(c) for c in got.reshape(-1, 3).tolist()} <= colors


def test_conversion_before_resizing_mixes_colors_of_a_palette():
    image = Image.fromarray(smooth(30, 30)).quantize(16)
    for rgb in ('before', 'white'):
        np.testing.assert_array_equal(
            Preprocess(17, rgb=rgb)(image), Preprocess(17)(image.convert('RGB'))
        )
    assert (Preprocess(17, rgb='before')(image) != Preprocess(17)(image)).any()


def test_transparency_is_dropped_or_laid_on_white():
    alpha = np.full((20, 20, 1), 255, np.uint8)
    alpha[:10] = 0
    image = Image.fromarray(np.concatenate([noise(20, 20), alpha], axis=2))
    dropped, white = (Preprocess(20, rgb=rgb)(image) for rgb in ('before', 'white'))
    np.testing.assert_array_equal(dropped, noise(20, 20))
    np.testing.assert_array_equal(white[10:], noise(20, 20)[10:])
    assert (white[:10] == 255).all()


def test_a_transparent_color_of_a_palette_is_laid_on_white():
    image = Image.fromarray(noise(20, 20)).quantize(4)
    image.info['transparency'] = 2
    white = Preprocess(20, rgb='white')(image)
    clear = np.asarray(image) == 2
    assert (white[clear] == 255).all()
    np.testing.assert_array_equal(white[~clear], Preprocess(20)(image)[~clear])


@pytest.mark.parametrize(('width', 'even', 'down'), [(13, 2, 2), (11, 2, 1), (12, 2, 2)])
def test_half_a_column_is_rounded_as_the_rule_says(width, even, down):
    wide = noise(8, width)
    np.testing.assert_array_equal(Preprocess(8)(wide), wide[:, even : even + 8])
    np.testing.assert_array_equal(Preprocess(8, crop='down')(wide), wide[:, down : down + 8])


def test_the_longest_side_can_fill_the_image_with_the_rest_black():
    image = Image.fromarray(noise(25, 100))
    got = Preprocess(20, 'longest')(image)
    # 100 x 25 to 20 x 5; of fifteen rows, seven go above.
    np.testing.assert_array_equal(got[7:12], np.asarray(image.resize((20, 5), Image.BICUBIC)))
    assert not got[:7].any()
    assert not got[12:].any()
    turned = Preprocess(20, 'longest')(image.transpose(Image.Transpose.TRANSPOSE))
    np.testing.assert_array_equal(turned, got.transpose(1, 0, 2))
    assert Preprocess(20, 'longest')(noise(1, 300)).shape == (20, 20, 3)


@pytest.mark.parametrize('number', range(6))
def test_every_filter_of_a_published_preprocessor_config_has_its_name(number):
    name = Image.Resampling(number).name.lower()
    image = Image.fromarray(noise(50, 50))
    want = np.asarray(image.resize((20, 20), Image.Resampling(number)))
    np.testing.assert_array_equal(Preprocess(20, interpolation=name)(image), want)


def test_paths_bytes_arrays_and_images_are_the_same_to_preprocess(tmp_path):
    array = noise(40, 60)
    data = encode(array)
    path = tmp_path / 'a.png'
    path.write_bytes(data)
    want = Preprocess(32)(Image.fromarray(array))
    assert want.shape == (32, 32, 3)
    assert want.dtype == np.uint8
    for image in (array, data, path, str(path)):
        np.testing.assert_array_equal(Preprocess(32)(image), want)
    gray = Preprocess(32)(array[:, :, 0])
    np.testing.assert_array_equal(gray, np.repeat(gray[:, :, :1], 3, axis=2))


def test_preprocess_names_what_it_cannot_read(tmp_path):
    path = tmp_path / 'cut.jpg'
    path.write_bytes(encode(noise(64, 64), 'JPEG')[:1000])
    cases = [
        (path, r'cut\.jpg: not a readable image'),
        (tmp_path / 'missing.jpg', r'missing\.jpg: not a readable image'),
        (Image.open(path), r'cut\.jpg: not a readable image'),
        (b'junk', r"4 bytes that begin with b'junk': not a readable image \(unknown format\)"),
        (np.zeros((4, 4, 3)), r'uint8 \[height, width, 3\], not float64'),
        (3, r'int: .*expected a PIL image'),
    ]
    for image, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            Preprocess(32)(image)
        assert '\n' not in str(error.value)


def test_preprocess_survives_its_card():
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    preprocess = Preprocess(48, 'squash', 'bilinear', mean, std, rgb='before', crop='down')
    assert Preprocess.from_card(json.loads(json.dumps(preprocess.card))) == preprocess
    assert hash(preprocess) == hash(Preprocess.from_card(preprocess.card))
    with pytest.raises(ValueError, match=r"'crop'.*longest, none, patches, shortest"):
        Preprocess(48, 'crop')
    with pytest.raises(ValueError, match='bicubic, bilinear'):
        Preprocess(48, interpolation='cubic')
    with pytest.raises(ValueError, match='after, before, white'):
        Preprocess(48, rgb='first')
    with pytest.raises(ValueError, match='down, even'):
        Preprocess(48, crop='up')


def test_a_card_says_no_more_than_it_must_and_nothing_unknown():
    assert Preprocess.from_card({'size': 48}) == Preprocess(48)
    with pytest.raises(ValueError, match=r"no 'resample'.*interpolation"):
        Preprocess.from_card({'size': 48, 'resample': 3})


def test_normalize_makes_float32_of_any_number_of_images():
    images = noise(6, 5)[None].repeat(2, axis=0)
    want = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    got = jax.jit(normalize, static_argnums=(1, 2))(images, CLIP_MEAN, CLIP_STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_evaluation_says_what_is_wrong_by_the_same_kinds(tmp_path):
    path = tmp_path / 'cut.jpg'
    path.write_bytes(encode(noise(64, 64), 'JPEG')[:2000])
    bomb = encode(np.zeros((9500, 9500), np.uint8))
    cases = [
        (b'', 'empty'),
        (b'<html>', 'not_an_image'),
        (path, 'truncated'),
        (tmp_path / 'missing.jpg', 'no_image'),
        (bomb, 'too_large'),
    ]
    for image, kind in cases:
        with pytest.raises(BadRecord) as error:
            Preprocess(32)(image)
        assert error.value.kind == kind, str(error.value)
        assert '\n' not in str(error.value)
    with pytest.raises(BadRecord, match=r'9500 x 9500 = 90,250,000 pixels; at most 89,478,485'):
        Preprocess(32)(bomb)
    # Someone who has the pixels already may use them.
    assert Preprocess(32)(Image.fromarray(np.zeros((9500, 9500), np.uint8))).shape == (32, 32, 3)


@pytest.mark.parametrize('resize', ['shortest', 'squash', 'longest'])
@pytest.mark.parametrize('rgb', ['after', 'before', 'white'])
def test_an_array_of_the_right_size_is_what_a_picture_of_it_gives(resize, rgb):
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    rule = Preprocess(32, resize=resize, rgb=rgb)
    np.testing.assert_array_equal(rule(array), rule(Image.fromarray(array)))
    np.testing.assert_array_equal(rule(array), array)


def test_a_thread_of_pixels_is_not_made_a_giant():
    with pytest.raises(BadRecord, match=r'pixels; at most') as error:
        Preprocess(224)(np.zeros((1, 2000, 3), np.uint8))
    assert error.value.kind == 'too_large'


def test_orientation_is_ignored_in_evaluation():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    data = encode(smooth(40, 60), 'JPEG', exif=exif, quality=95)
    lying = np.asarray(Image.open(io.BytesIO(data)))[:, 10:50]
    np.testing.assert_array_equal(Preprocess(40)(data), lying)


@pytest.mark.parametrize('rule', [{}, {'resize': 'squash'}, {'rgb': 'before'}])
def test_very_large_jpegs_are_decoded_at_a_reduced_size(rule, monkeypatch):
    data, rule = encode(smooth(900, 1201), 'JPEG', quality=95), Preprocess(32, **rule)
    exact = rule(data)
    sizes = []
    decode = JpegImageFile.load

    def load(self):
        sizes.append(self.size)
        return decode(self)

    monkeypatch.setattr(JpegImageFile, 'load', load)
    monkeypatch.setattr(preprocess, 'EXACT_PIXELS', 1_000_000)
    difference = np.abs(rule(data).astype(int) - exact)
    assert difference.max() <= 5 and difference.mean() < 1
    assert set(sizes) == {(301, 225)}  # at least four times the result
    monkeypatch.setattr(preprocess, 'EXACT_PIXELS', 1_080_900)  # the image itself has no more
    np.testing.assert_array_equal(rule(data), exact)
    # An image that the caller opened is not changed.
    monkeypatch.setattr(preprocess, 'EXACT_PIXELS', 1)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(rule(image), exact)


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_16_bit_grayscale_is_clipped_as_published_or_scaled_as_in_training(format, monkeypatch):
    gray = smooth(40, 40)[:, :, 0]
    wide = gray.astype(np.uint16) * 257
    data = encode(wide, format)
    warned = []
    monkeypatch.setattr(
        logging, 'log_first_n', lambda level, text, n, *names: warned.append((text, n, names))
    )
    assert (Preprocess(20)(data) == 255).mean() > 0.9
    ((text, times, names),) = warned
    assert times == 1 and '--gray16=scale' in text and 'bytes that begin with' in names[0]
    scaled = Preprocess(20, gray16='scale')
    np.testing.assert_array_equal(scaled(data), Preprocess(20)(gray))
    np.testing.assert_array_equal(upright.decode(data), np.repeat(gray[..., None], 3, axis=2))
    # What has no value above 255 loses nothing.
    Preprocess(20)(encode(gray.astype(np.uint16), format))
    assert len(warned) == 1
    with pytest.raises(ValueError, match="gray16: there is no 'crop'"):
        Preprocess(20, gray16='crop')


def test_the_card_says_how_16_bits_are_read_and_not_what_is_refused():
    rule = Preprocess(20, gray16='scale', max_pixels=1000)
    assert rule.card['gray16'] == 'scale' and 'max_pixels' not in rule.card
    assert Preprocess.from_card(rule.card) == Preprocess(20, gray16='scale')
    with pytest.raises(ValueError, match='max_pixels'):
        Preprocess.from_card({**rule.card, 'max_pixels': 9})
