"""Training augmentation: crops are in the right place, without aliasing, random as asked."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.pictures import encode, noise, smooth

from clip_jax.data import augment
from clip_jax.data.augment import Box
from clip_jax.data.image import decoders, upright


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


# Training.


def whole(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    return augment.resized_crop(image, Box(0, 0, width, height), size)


def bicubic(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Pillow's antialiased filter, of a part."""
    left, top, w, h = box
    part = (left, top, left + w, top + h)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=part)
    return np.asarray(resized)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_images_stand_upright_in_training(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'JPEG': {'quality': 95}, 'WEBP': {'lossless': True}}.get(kind, {})
    stored = smooth(40, 60)
    data = encode(stored, kind, exif=exif, **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
    image = upright.decode(data)
    assert image.shape == want.shape
    assert upright.measure(data) == image.shape[:2]
    assert difference(image, want) < 0.5
    # A part is cut out of the upright image, not of the stored one.
    box = Box(3, 7, 25, 20)
    assert difference(augment.resized_crop(data, box, 32), bicubic(want, box, 32)) < 1.5


@pytest.mark.parametrize(('height', 'width'), [(200, 200), (150, 200), (180, 120)])
def test_boxes_have_the_promised_area_aspect_and_place(height, width):
    rng = np.random.default_rng(0)
    boxes = [augment.random_box(rng, height, width, scale=(0.3, 1.0)) for _ in range(3000)]
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
        box = augment.random_box(rng, height, width)
        assert augment.resized_crop(coordinates(height, width), box, 32).shape == (32, 32, 3)
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
        assert difference(augment.resized_crop(decoded, box, 64), want) < 1.2
        # In a JPEG that has far more pixels than are needed, not all are decoded.
        assert difference(augment.resized_crop(data, box, 64), want) < 1.2


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
            got = box(augment.resized_crop(data, place, size))
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
        augment.resized_crop(data, Box(0, 0, 601, 401), size)
    assert asked == [401, 201, 101, 51]


def test_parts_that_are_not_there_are_refused():
    for place in (Box(-1, 0, 5, 5), Box(0, 0, 31, 5), Box(0, 18, 5, 3), Box(2, 2, 5, 0)):
        for image in (noise(20, 30), encode(noise(20, 30))):
            with pytest.raises(ValueError, match='not inside an image of 30 x 20 pixels'):
                augment.resized_crop(image, place, 8)


def test_enlarging_is_smooth():
    image = smooth(40, 40)
    assert difference(whole(image, 100), bicubic(image, Box(0, 0, 40, 40), 100)) < 1.5  # linear 2.3


def test_flip_mirrors_as_often_as_asked():
    rng = np.random.default_rng(0)
    image = noise(4, 5)
    place = image.copy()
    assert augment.flip(place, rng, 1.0) is place
    np.testing.assert_array_equal(place, image[:, ::-1])
    np.testing.assert_array_equal(augment.flip(image.copy(), rng, 0.0), image)
    flipped = [not np.array_equal(augment.flip(image.copy(), rng, 0.3), image) for _ in range(1000)]
    assert 0.25 < np.mean(flipped) < 0.35


def jitter(image: np.ndarray, seed: int = 0, **options) -> np.ndarray:
    return augment.color_jitter(image, np.random.default_rng(seed), **options)


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
    got = augment.grayscale(image, rng, 1.0)
    want = np.asarray(Image.fromarray(image).convert('L').convert('RGB'))
    np.testing.assert_allclose(got.astype(int), want, atol=1)
    assert augment.grayscale(image, rng, 0.0) is image
    turned = [augment.grayscale(image, rng, 0.2) is not image for _ in range(1000)]
    assert 0.15 < np.mean(turned) < 0.25
