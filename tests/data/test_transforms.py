"""transforms: evaluation equals the published rule bit for bit; crops keep their promises."""

import io
import json
import pathlib

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.data import transforms
from clip_jax.data.transforms import CLIP_MEAN, CLIP_STD, Preprocess

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden' / 'preprocess'
golden = pytest.mark.skipif(not GOLDEN.exists(), reason='reference outputs are not on this machine')


def encode(array: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Something with the fall-off of detail that photographs have."""
    image = sum(
        cv2.resize(
            noise(n, n, n).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        / (i + 1)
        for i, n in enumerate((4, 16, 64, 256))
    )
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """Red tells the column and green the row of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)


def box(crop: np.ndarray) -> np.ndarray:
    """Left, top, width and height of the part of `coordinates` that a crop shows, to about 1."""
    size = len(crop)
    left, top = crop[size // 2, 0, 0].astype(float), crop[0, size // 2, 1].astype(float)
    width = (crop[size // 2, -1, 0] - left) * size / (size - 1)
    height = (crop[-1, size // 2, 1] - top) * size / (size - 1)
    return np.array([left - width / size / 2, top - height / size / 2, width, height])


# The published evaluation rule.


@golden
def test_shortest_side_and_centre_crop_equal_the_reference_exactly():
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
        got = transforms.normalise(preprocess(GOLDEN / 'images' / name), half, half)
        # Neighbouring uint8 values are 0.008 apart, so this is equality.
        np.testing.assert_allclose(got.transpose(2, 0, 1), expected[key], atol=1e-6, err_msg=key)


@golden
def test_normalised_crops_equal_the_reference_to_the_rounding_of_float16():
    expected = np.load(GOLDEN / 'expected_float16.npz')
    assert len(expected.files) == 28
    for key in expected.files:
        size, name = key.split('/')
        crop = Preprocess(int(size))(GOLDEN / 'images' / name)
        got = np.asarray(transforms.normalise(crop, CLIP_MEAN, CLIP_STD), np.float16)
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
    colours = {tuple(c) for c in np.asarray(image.convert('RGB')).reshape(-1, 3).tolist()}
    got = Preprocess(17)(image)
    assert {tuple(c) for c in got.reshape(-1, 3).tolist()} <= colours


def test_conversion_before_resizing_mixes_colours_of_a_palette():
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


def test_a_transparent_colour_of_a_palette_is_laid_on_white():
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
    grey = Preprocess(32)(array[:, :, 0])
    np.testing.assert_array_equal(grey, np.repeat(grey[:, :, :1], 3, axis=2))


def test_preprocess_names_what_it_cannot_read(tmp_path):
    path = tmp_path / 'cut.jpg'
    path.write_bytes(encode(noise(64, 64), 'JPEG')[:1000])
    cases = [
        (path, r'cut\.jpg: not a readable image'),
        (tmp_path / 'missing.jpg', r'missing\.jpg: not a readable image'),
        (Image.open(path), r'cut\.jpg: not a readable image'),
        (b'junk', r"4 bytes that begin with b'junk': not a readable image \(unknown format\)"),
        (np.zeros((4, 4, 3)), r'uint8 \[height, width, 3\], this one is float64'),
        (3, r'int: .*expected is a PIL image'),
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
    with pytest.raises(ValueError, match=r"'crop'.*longest, shortest, squash"):
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


def test_normalise_makes_float32_of_any_number_of_images():
    images = noise(6, 5)[None].repeat(2, axis=0)
    want = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    got = jax.jit(transforms.normalise, static_argnums=(1, 2))(images, CLIP_MEAN, CLIP_STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


# Training.


def test_decode_gives_rgb_of_every_format():
    array = noise(20, 30)
    np.testing.assert_array_equal(transforms.decode(encode(array)), array)
    assert transforms.decode(array) is array
    for kind in ('JPEG', 'WEBP'):
        flat = np.full((16, 16, 3), (250, 30, 90), np.uint8)
        difference = transforms.decode(encode(flat, kind)).astype(int) - flat
        assert abs(difference).max() <= 8
    grey = transforms.decode(encode(array[:, :, 0]))
    np.testing.assert_array_equal(grey, np.repeat(array[:, :, :1], 3, axis=2))
    clear = np.concatenate([array, np.zeros((20, 30, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(transforms.decode(encode(clear)), array)


def test_orientation_is_applied_in_training_and_ignored_in_evaluation():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    data = encode(smooth(40, 60), 'JPEG', exif=exif.tobytes(), quality=95)
    assert transforms.decode(data).shape == (60, 40, 3)
    lying = np.asarray(Image.open(io.BytesIO(data)))[:, 10:50]
    np.testing.assert_array_equal(Preprocess(40)(data), lying)


@pytest.mark.parametrize('data', [b'', b'junk', encode(noise(64, 64), 'JPEG')[:2000]])
def test_decode_refuses_what_is_not_a_whole_image(data):
    with pytest.raises(ValueError, match='not a readable image'):
        transforms.decode(data)


@pytest.mark.parametrize(('height', 'width'), [(200, 200), (150, 200), (180, 120)])
def test_crops_have_the_promised_area_aspect_and_place(height, width):
    rng = np.random.default_rng(0)
    image = coordinates(height, width)
    crops = [
        transforms.random_resized_crop(image, rng, size=64, scale=(0.3, 1.0)) for _ in range(300)
    ]
    assert all(crop.shape == (64, 64, 3) and crop.dtype == np.uint8 for crop in crops)
    left, top, w, h = np.array([box(crop) for crop in crops]).T
    share, aspect = w * h / (height * width), w / h
    assert share.min() > 0.28
    assert share.max() < 1.03
    assert 0.73 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.37
    assert min(left.min(), top.min()) > -2
    assert (left + w).max() < width + 2
    assert (top + h).max() < height + 2
    # Uniform in area, and anywhere in the room there is.
    assert abs(np.mean(share) - 0.65) < 0.05
    room = (width - w) > 20
    place = (left / (width - w))[room]
    assert 0.4 < place.mean() < 0.6
    assert place.std() > 0.25


@pytest.mark.parametrize(('height', 'width'), [(20, 250), (250, 20), (1, 1), (1, 200), (64, 64)])
def test_extreme_images_are_cropped_too(height, width):
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = transforms.random_resized_crop(coordinates(height, width), rng, size=32)
        assert crop.shape == (32, 32, 3)
    if min(height, width) == 20:  # as much as an allowed aspect can show, and not stretched further
        *_, w, h = box(crop)
        assert max(w, h) / min(w, h) == pytest.approx(4 / 3, abs=0.1)


@pytest.mark.parametrize('side', [70, 85, 100, 121, 127, 128, 160, 200, 333])
def test_shrinking_is_as_good_as_an_exact_filter(side):
    # The whole image, so that Pillow's antialiased bicubic can be asked for the same.
    whole = {'scale': (1, 1), 'ratio': (1, 1)}
    rng = np.random.default_rng(0)
    image = smooth(side, side)
    got = transforms.random_resized_crop(image, rng, size=64, **whole).astype(int)
    want = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(got - want).mean() < 2


@pytest.mark.parametrize('side', [85, 100, 121, 127, 160, 200, 333])
def test_shrinking_does_not_alias(side):
    # Pixels that alternate become grey; without a filter they make patterns (deviation 28 to 42).
    board = (255 * (np.indices((side, side, 3))[:2].sum(axis=0) % 2)).astype(np.uint8)
    rng = np.random.default_rng(0)
    got = transforms.random_resized_crop(board, rng, size=64, scale=(1, 1), ratio=(1, 1))
    assert got.std() < 15
    assert 120 < got.mean() < 135


def test_enlarging_is_smooth():
    image = smooth(40, 40)
    rng = np.random.default_rng(0)
    got = transforms.random_resized_crop(image, rng, size=100, scale=(1, 1), ratio=(1, 1))
    want = np.asarray(Image.fromarray(image).resize((100, 100), Image.Resampling.BICUBIC))
    assert np.abs(got.astype(int) - want).mean() < 1.5  # linear: 2.3


def test_flip_mirrors_as_often_as_asked():
    rng = np.random.default_rng(0)
    image = noise(4, 5)
    np.testing.assert_array_equal(transforms.flip(image, rng, 1.0), image[:, ::-1])
    np.testing.assert_array_equal(transforms.flip(image, rng, 0.0), image)
    flipped = [not np.array_equal(transforms.flip(image, rng, 0.3), image) for _ in range(1000)]
    assert 0.25 < np.mean(flipped) < 0.35


def test_every_text_is_chosen_equally_often():
    rng = np.random.default_rng(0)
    chosen = [transforms.choose_text(['a', 'b', 'c'], rng) for _ in range(3000)]
    assert all(900 < chosen.count(text) < 1100 for text in 'abc')
    with pytest.raises(ValueError, match='no text'):
        transforms.choose_text([], rng)
