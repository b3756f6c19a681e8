"""The operations of RandAugment and TrivialAugment give what Pillow gives, to within 1 of 255."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support.pictures import noise, smooth

from clip_jax.data import augment_ops
from clip_jax.data.augment import Augment
from clip_jax.data.augment_ops import LEVELS, RAND, TRIVIAL_WIDE

TABLES = {'rand': RAND, 'trivial_wide': TRIVIAL_WIDE}


def transformed(*matrix: float):
    def apply(image: Image.Image) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return apply


def pillow(name: str, x: float):
    """What Pillow has for an operation with its argument."""
    return {
        'identity': lambda image: image,
        'shear_x': transformed(1, x, 0, 0, 1, 0),
        'shear_y': transformed(1, 0, 0, x, 1, 0),
        'translate_x': transformed(1, 0, int(x), 0, 1, 0),
        'translate_y': transformed(1, 0, 0, 0, 1, int(x)),
        'rotate': lambda image: image.rotate(x),
        'brightness': lambda image: ImageEnhance.Brightness(image).enhance(1 + x),
        'color': lambda image: ImageEnhance.Color(image).enhance(1 + x),
        'contrast': lambda image: ImageEnhance.Contrast(image).enhance(1 + x),
        'sharpness': lambda image: ImageEnhance.Sharpness(image).enhance(1 + x),
        'posterize': lambda image: ImageOps.posterize(image, int(x)),
        'solarize': lambda image: ImageOps.solarize(image, x),
        'auto_contrast': ImageOps.autocontrast,
        'equalize': ImageOps.equalize,
    }[name]


def hill(side: int) -> np.ndarray:
    """Black at the edges, and neighbors differ by 1 at most: a place that is rounded otherwise
    changes nothing else.
    """
    rows, columns = np.mgrid[:side, :side]
    distance = np.minimum(np.minimum(rows, columns), side - 1 - np.maximum(rows, columns))
    ramps = [distance, np.minimum(distance, rows // 2), np.minimum(distance, columns // 2)]
    return np.stack(ramps, axis=2).astype(np.uint8)


def pictures(name: str) -> list[np.ndarray]:
    if name.startswith(('shear', 'rotate')):
        return [hill(64), hill(101)]
    plain = np.full((16, 16, 3), (10, 200, 30), np.uint8)
    return [noise(48, 48), smooth(64, 64), (smooth(33, 33) * 0.3 + 90).astype(np.uint8), plain]


@pytest.mark.parametrize('table', TABLES)
@pytest.mark.parametrize('name', RAND)
def test_every_operation_gives_what_pillow_gives(table, name):
    op = TABLES[table][name]
    for image in pictures(name):
        before = image.copy()
        for level in (0, 1, 9, 17, LEVELS - 1):
            value = augment_ops.argument(op, level, len(image))
            for x in (value, -value) if op.signed else (value,):
                got = op.function(image, x)
                want = np.asarray(pillow(name, x)(Image.fromarray(image)))
                assert got.dtype == np.uint8 and got.shape == want.shape
                assert np.abs(got.astype(int) - want).max() <= 1, (level, x)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('name', ['shear_x', 'shear_y', 'rotate'])
def test_pixels_of_a_sharp_image_go_to_the_same_places(name):
    """But for those whose place is between two."""
    image = noise(97, 97)
    for x in (0.31, -0.23) if 'shear' in name else (31.0, -100.0):
        got = TRIVIAL_WIDE[name].function(image, x)
        want = np.asarray(pillow(name, x)(Image.fromarray(image)))
        assert (got != want).any(axis=2).mean() < 0.005


def test_magnitudes_are_those_of_the_papers():
    def most(table, side: int) -> dict[str, float]:
        return {name: augment_ops.argument(op, LEVELS - 1, side) for name, op in table.items()}

    rand, wide = most(RAND, 331), most(TRIVIAL_WIDE, 331)
    assert len(rand) == len(wide) == 14
    assert (rand['shear_x'], rand['rotate']) == (0.3, 30)
    assert rand['translate_y'] == pytest.approx(150)
    assert (rand['brightness'], rand['posterize'], rand['solarize']) == (0.9, 4, 0)
    assert (wide['shear_x'], wide['translate_y'], wide['rotate']) == (0.99, 32, 135)
    assert (wide['brightness'], wide['posterize'], wide['solarize']) == (0.99, 2, 0)
    bits = [augment_ops.argument(RAND['posterize'], level, 1) for level in range(LEVELS)]
    assert sorted({*bits}) == [4, 5, 6, 7, 8] and bits == sorted(bits, reverse=True)


def test_operations_are_drawn_equally_often_and_with_both_signs(monkeypatch):
    drawn = Counter()

    def watch(image, op, level, sign):
        drawn[op.function.__name__, level, sign < 0.5] += 1
        return image

    monkeypatch.setattr(augment_ops, '_apply', watch)
    rng, image = np.random.default_rng(0), smooth(8, 8)
    for _ in range(2000):
        augment_ops.rand_augment(image, rng, 2, 9)
    assert sum(drawn.values()) == 4000
    assert len(drawn) == 28 and {level for _, level, _ in drawn} == {9}
    assert min(drawn.values()) > 90 and max(drawn.values()) < 200
    drawn.clear()
    monkeypatch.undo()
    name = 'translate_x'
    monkeypatch.setattr(augment_ops, 'RAND', {name: RAND[name]})
    views = [augment_ops.rand_augment(image, rng, 1, LEVELS - 1) for _ in range(20)]
    left, right = (RAND[name].function(image, x) for x in (3, -3))
    assert {view.tobytes() for view in views} == {left.tobytes(), right.tobytes()}
    monkeypatch.setattr(augment_ops, '_apply', watch)
    for _ in range(3100):
        augment_ops.trivial_augment(image, rng)
    assert sum(drawn.values()) == 3100
    levels = Counter()
    for (_, level, _), count in drawn.items():
        levels[level] += count
    assert {*levels} == {*range(LEVELS)} and min(levels.values()) > 60


def test_a_rectangle_of_the_promised_area_and_aspect_is_erased():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        image = augment_ops.random_erasing(np.zeros((64, 64, 3), np.uint8), rng, 1.0)
        rows, columns = (np.flatnonzero(image.any(axis=2).any(axis=k)) for k in (1, 0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert image.any(axis=2).sum() == pytest.approx(h * w, rel=0.01)
        found.append((h * w / 64**2, h / w, rows[0], columns[0]))
    area, aspect, top, left = np.array(found).T
    assert 0.018 < area.min() < 0.04 and 0.3 < area.max() < 0.41
    assert 0.27 < aspect.min() < 0.5 and 2.5 < aspect.max() < 3.7
    assert min(top.min(), left.min()) == 0 and max(top.max(), left.max()) > 40
    assert 120 < image[image > 0].mean() < 136  # noise
    image = smooth(8, 8)
    np.testing.assert_array_equal(augment_ops.random_erasing(image.copy(), rng, 0.0), image)
    images = [augment_ops.random_erasing(image.copy(), rng, 0.3) for _ in range(500)]
    assert 0.24 < np.mean([not np.array_equal(one, image) for one in images]) < 0.36


def test_augment_draws_from_the_numbers_of_the_example():
    image = smooth(40, 40)

    def augmented(seed: int, **options) -> np.ndarray:
        out = np.empty((24, 24, 3), np.uint8)
        Augment((1.0, 1.0), **options)(image, (40, 40), np.random.default_rng(seed), out)
        return out

    plain = augmented(0)
    for options in ({'randaugment': (2, 9)}, {'trivial_augment': True}, {'random_erasing': 1.0}):
        views = [augmented(seed, **options) for seed in range(20)]
        assert sum(not np.array_equal(view, plain) for view in views) > 12
        for seed, view in enumerate(views):
            np.testing.assert_array_equal(view, augmented(seed, **options))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'randaugment': (2,)}, r'randaugment \(2,\) is not a number of operations'),
        ({'randaugment': (0, 9)}, r'randaugment \(0, 9\) is not'),
        ({'randaugment': (2, 31)}, r'a magnitude from 0 to 30, such as \(2, 9\)'),
        ({'randaugment': (2, 9.5)}, r'randaugment \(2, 9.5\) is not'),
        ({'randaugment': (2, 9), 'trivial_augment': True}, 'expected at most one of them'),
        ({'random_erasing': 1.5}, 'random_erasing 1.5 is not a probability'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Augment(**options)
    assert '\n' not in str(error.value)
