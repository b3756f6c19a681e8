"""transforms: evaluation equals the published rule bit for bit; crops keep their promises."""

import colorsys
import io
import json
import pathlib

import cv2
import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_jax.data import transforms
from clip_jax.data.errors import BadRecord
from clip_jax.data.image import decoders
from clip_jax.data.transforms import CLIP_MEAN, CLIP_STD, Box, Preprocess

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
        got = transforms.normalize(preprocess(GOLDEN / 'images' / name), half, half)
        # Neighboring uint8 values are 0.008 apart, so this is equality.
        np.testing.assert_allclose(got.transpose(2, 0, 1), expected[key], atol=1e-6, err_msg=key)


@golden
def test_normalized_crops_equal_the_reference_to_the_rounding_of_float16():
    expected = np.load(GOLDEN / 'expected_float16.npz')
    assert len(expected.files) == 28
    for key in expected.files:
        size, name = key.split('/')
        crop = Preprocess(int(size))(GOLDEN / 'images' / name)
        got = np.asarray(transforms.normalize(crop, CLIP_MEAN, CLIP_STD), np.float16)
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


def test_normalize_makes_float32_of_any_number_of_images():
    images = noise(6, 5)[None].repeat(2, axis=0)
    want = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    got = jax.jit(transforms.normalize, static_argnums=(1, 2))(images, CLIP_MEAN, CLIP_STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_evaluation_says_what_is_wrong_by_the_same_kinds(tmp_path):
    path = tmp_path / 'cut.jpg'
    path.write_bytes(encode(noise(64, 64), 'JPEG')[:2000])
    bomb = encode(np.zeros((7000, 7000), np.uint8))
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
    with pytest.raises(BadRecord, match=r'7000 x 7000 = 49,000,000 pixels; at most 40,000,000'):
        Preprocess(32)(bomb)
    # Someone who has the pixels already may use them.
    assert Preprocess(32)(Image.fromarray(np.zeros((7000, 7000), np.uint8))).shape == (32, 32, 3)


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


# Training.


def whole(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    return transforms.cut(image, Box(0, 0, width, height), size)


def bicubic(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Pillow's antialiased filter, of a part."""
    left, top, w, h = box
    part = (left, top, left + w, top + h)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=part)
    return np.asarray(resized)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(int) - other).mean()


def test_arrays_are_images_too():
    array = noise(20, 30)
    assert transforms.decode(array) is array
    assert transforms.measure(array) == (20, 30)
    gray = transforms.decode(array[:, :, 0])
    np.testing.assert_array_equal(gray, np.repeat(array[:, :, :1], 3, axis=2))
    for wrong in (array.astype(float), array[:, :, :2], array[None]):
        with pytest.raises(ValueError, match='an image array must be uint8'):
            transforms.decode(wrong)
    for image in (noise(1, 30), noise(30, 1)):
        for use in (transforms.decode, transforms.measure):
            with pytest.raises(BadRecord, match='expected are sides of at least 2') as error:
                use(image)
            assert error.value.kind == 'too_small'


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_images_stand_upright_in_training(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'JPEG': {'quality': 95}, 'WEBP': {'lossless': True}}.get(kind, {})
    stored = smooth(40, 60)
    data = encode(stored, kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
    image = transforms.decode(data)
    assert image.shape == upright.shape
    assert transforms.measure(data) == image.shape[:2]
    assert difference(image, upright) < 0.5
    # A part is cut out of the upright image, not of the stored one.
    box = Box(3, 7, 25, 20)
    assert difference(transforms.cut(data, box, 32), bicubic(upright, box, 32)) < 1.5


def test_orientation_is_ignored_in_evaluation():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    data = encode(smooth(40, 60), 'JPEG', exif=exif, quality=95)
    lying = np.asarray(Image.open(io.BytesIO(data)))[:, 10:50]
    np.testing.assert_array_equal(Preprocess(40)(data), lying)


@pytest.mark.parametrize(('height', 'width'), [(200, 200), (150, 200), (180, 120)])
def test_boxes_have_the_promised_area_aspect_and_place(height, width):
    rng = np.random.default_rng(0)
    boxes = [transforms.random_box(rng, height, width, scale=(0.3, 1.0)) for _ in range(3000)]
    left, top, w, h = np.array(boxes).T
    share, aspect = w * h / (height * width), w / h
    assert 0.29 < share.min() < 0.33
    most = min(1, 4 / 3 * height / width, 4 / 3 * width / height)  # all, if no aspect forbids it
    assert most - 0.03 < share.max() <= most + 0.001
    assert 0.73 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.37
    assert min(left.min(), top.min()) == 0
    assert (left + w).max() == width
    assert (top + h).max() == height
    # Uniform in area, and anywhere in the room there is.
    assert abs(np.mean(share) - 0.65) < 0.02
    room = (width - w) > 20
    assert (left + w)[room].max() == width
    place = left[room] / (width - w[room])
    assert abs(place.mean() - 0.5) < 0.03
    assert place.std() > 0.27


@pytest.mark.parametrize(('height', 'width'), [(20, 250), (250, 20), (2, 2), (2, 200), (64, 64)])
def test_extreme_images_are_cropped_too(height, width):
    rng = np.random.default_rng(0)
    for _ in range(20):
        box = transforms.random_box(rng, height, width)
        assert transforms.cut(coordinates(height, width), box, 32).shape == (32, 32, 3)
        if min(height, width) == 20:  # as much as an allowed aspect can show, and no more
            sides = sorted(box[2:])
            assert sides[1] / sides[0] == pytest.approx(4 / 3, abs=0.1)


@pytest.mark.parametrize('side', [40, 64, 70, 85, 100, 121, 128, 160, 191, 193, 200, 333, 400])
def test_cutting_is_as_good_as_an_exact_filter(side):
    # Something as sharp as photographs are at their own resolution, parts at odd places.
    image = smooth(420, 410)
    data = encode(image, 'JPEG', quality=95, subsampling=0)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    for box in (Box(1, 3, side, side), Box(7, 2, side, int(side * 0.8))):
        want = bicubic(decoded, box, 64)
        assert difference(transforms.cut(decoded, box, 64), want) < 1.2
        # In a JPEG that has far more pixels than are needed, not all are decoded.
        assert difference(transforms.cut(data, box, 64), want) < 1.2


@pytest.mark.parametrize('side', [85, 100, 121, 127, 160, 200, 333])
def test_shrinking_does_not_alias(side):
    # Pixels that alternate become gray; without a filter they make patterns (deviation 62).
    board = (255 * (np.indices((side, side, 3))[:2].sum(axis=0) % 2)).astype(np.uint8)
    got = whole(board, 64)
    assert got.std() < 17
    assert 120 < got.mean() < 135


@pytest.mark.parametrize('size', [64, 150, 333])
def test_a_part_is_where_it_should_be(size):
    # Colors tell the place.
    image = coordinates(250, 250)
    for kind, options in (('PNG', {}), ('JPEG', {'quality': 100, 'subsampling': 0})):
        data = encode(image, kind, **options)
        for place in (Box(13, 7, 201, 199), Box(0, 0, 250, 250), Box(40, 31, 120, 150)):
            got = box(transforms.cut(data, place, size))
            np.testing.assert_allclose(got, place, atol=1.6)


def test_large_jpegs_are_decoded_no_further_than_needed(monkeypatch):
    asked = []
    decode = decoders.simplejpeg.decode_jpeg

    def watched(data, **options):
        image = decode(data, **options)
        asked.append(image.shape[0])
        return image

    monkeypatch.setattr(decoders.simplejpeg, 'decode_jpeg', watched)
    data = encode(smooth(401, 601), 'JPEG')
    for size in (400, 130, 65, 30):
        transforms.cut(data, Box(0, 0, 601, 401), size)
    assert asked == [401, 201, 101, 51]


def test_parts_that_are_not_there_are_refused():
    for place in (Box(-1, 0, 5, 5), Box(0, 0, 31, 5), Box(0, 18, 5, 3), Box(2, 2, 5, 0)):
        for image in (noise(20, 30), encode(noise(20, 30))):
            with pytest.raises(ValueError, match='not a part of an image of 30 x 20 pixels'):
                transforms.cut(image, place, 8)


def test_enlarging_is_smooth():
    image = smooth(40, 40)
    assert difference(whole(image, 100), bicubic(image, Box(0, 0, 40, 40), 100)) < 1.5  # linear 2.3


def test_flip_mirrors_as_often_as_asked():
    rng = np.random.default_rng(0)
    image = noise(4, 5)
    place = image.copy()
    assert transforms.flip(place, rng, 1.0) is place
    np.testing.assert_array_equal(place, image[:, ::-1])
    np.testing.assert_array_equal(transforms.flip(image.copy(), rng, 0.0), image)
    flipped = [
        not np.array_equal(transforms.flip(image.copy(), rng, 0.3), image) for _ in range(1000)
    ]
    assert 0.25 < np.mean(flipped) < 0.35


def jitter(image: np.ndarray, seed: int = 0, **options) -> np.ndarray:
    return transforms.color_jitter(image, np.random.default_rng(seed), **options)


def soft(height: int = 32, width: int = 32) -> np.ndarray:
    """Colors far enough from black and white that no change of them is cut off."""
    return (smooth(height, width) * 0.3 + 90).astype(np.uint8)


def test_brightness_is_a_uniform_factor():
    factors = [jitter(soft(), i, brightness=0.4).mean() / soft().mean() for i in range(300)]
    assert 0.6 <= min(factors) < 0.63
    assert 1.37 < max(factors) < 1.41
    assert abs(np.mean(factors) - 1) < 0.05


def test_contrast_keeps_the_mean_and_scales_what_differs_from_it():
    gray = np.repeat(soft()[:, :, :1], 3, axis=2)
    for i in range(10):
        got = jitter(gray, i, contrast=0.5)
        assert abs(got.mean() - gray.mean()) < 1
    scales = [jitter(gray, i, contrast=0.5).std() / gray.std() for i in range(300)]
    assert 0.48 < min(scales) < 0.55
    assert 1.45 < max(scales) < 1.52


def test_saturation_keeps_the_luminance():
    def luminance(image):
        return image @ np.array([0.299, 0.587, 0.114])

    image = soft()
    chroma = image - luminance(image)[:, :, None]
    scales = []
    for i in range(200):
        got = jitter(image, i, saturation=1.0)
        assert np.abs(luminance(got) - luminance(image)).max() < 1.5
        scales.append(((got - luminance(got)[:, :, None]) * chroma).sum() / (chroma**2).sum())
    assert -0.02 < min(scales) < 0.05
    assert 1.95 < max(scales) < 2.02


def test_hue_goes_around_the_circle():
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    hues = [
        colorsys.rgb_to_hsv(*(jitter(red, i, hue=0.1)[0, 0] / 255.0).tolist()) for i in range(200)
    ]
    turns = (np.array(hues)[:, 0] + 0.5) % 1 - 0.5
    assert -0.11 < turns.min() < -0.09
    assert 0.09 < turns.max() < 0.11
    np.testing.assert_allclose(np.array(hues)[:, 1:], [[0.8, 200 / 255]] * 200, atol=0.02)


def test_jitter_happens_as_often_as_asked_and_follows_from_the_random_numbers():
    image = soft()
    every = {'brightness': 0.8, 'contrast': 0.8, 'saturation': 0.8, 'hue': 0.2}
    changed = [not np.array_equal(jitter(image, i, p=0.8, **every), image) for i in range(500)]
    assert 0.75 < np.mean(changed) < 0.85
    assert jitter(image, p=0.0, **every) is image
    assert jitter(image) is image
    np.testing.assert_array_equal(jitter(image, 3, **every), jitter(image, 3, **every))
    assert jitter(image, **every).dtype == np.uint8
    np.testing.assert_array_equal(image, soft())  # what was handed in stays as it was


def test_gray_is_the_luminance_in_all_channels():
    rng = np.random.default_rng(0)
    image = noise(20, 20)
    got = transforms.grayscale(image, rng, 1.0)
    want = np.asarray(Image.fromarray(image).convert('L').convert('RGB'))
    np.testing.assert_allclose(got.astype(int), want, atol=1)
    assert transforms.grayscale(image, rng, 0.0) is image
    turned = [transforms.grayscale(image, rng, 0.2) is not image for _ in range(1000)]
    assert 0.15 < np.mean(turned) < 0.25


def test_every_text_is_chosen_equally_often():
    rng = np.random.default_rng(0)
    chosen = [transforms.choose_text(['a', 'b', 'c'], rng) for _ in range(3000)]
    assert all(900 < chosen.count(text) < 1100 for text in 'abc')


def test_texts_are_chosen_by_rule():
    rng = np.random.default_rng(0)
    texts = ['one', 'three', 'seven', 'two']
    assert {transforms.choose_text(texts, rng, 'first') for _ in range(20)} == {'one'}
    assert {transforms.choose_text(texts, rng, 'longest') for _ in range(20)} == {'three'}
    for rule in transforms.CAPTIONS:
        with pytest.raises(BadRecord, match='no text') as error:
            transforms.choose_text([], rng, rule)
        assert error.value.kind == 'no_caption'
