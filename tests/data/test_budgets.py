"""Patches of images of any aspect ratio: how many, their crops, and the batches that have them."""

import contextlib
import io

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.data import augment, budgets, patches, pipeline
from clip_jax.data.augment import Augment, Box
from clip_jax.data.budgets import Budgets
from clip_jax.data.preprocess import Preprocess

TWO = Budgets(3, ((6, 0.25), (12, 0.75)), ((4, 0.5), (5, 0.5)))


def photo(height: int, width: int) -> np.ndarray:
    """A smooth picture with another color in each corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([y, x, 1 - y * x], axis=2)).astype(np.uint8)


def together(row: patches.Patches) -> np.ndarray:
    """The image that patches are of."""
    size, (rows, columns) = row.patch_size, row.grid
    pixels = row.pixels[: rows * columns].reshape(rows, columns, size, size, 3)
    return pixels.swapaxes(1, 2).reshape(rows * size, columns * size, 3)


@pytest.mark.parametrize(
    ('shape', 'size', 'most', 'expected'),
    [
        # From the test of big_vision's resize_to_sequence.
        ((48, 48), 3, 121, (33, 33)),
        ((112, 109), 7, 225, (105, 105)),
        ((176, 176), 11, 64, (88, 88)),
        ((256, 64), 16, 12, (96, 32)),
        ((256, 64), 8, 15, (56, 16)),
        ((63, 241), 16, 16, (32, 128)),
        ((16, 512), 16, 16, (16, 256)),
        ((1, 1), 16, 256, (112, 112)),  # at most 100 times as large
        ((10, 9000), 16, 4, (16, 64)),
    ],
)
def test_images_are_as_large_as_fits(shape, size, most, expected):
    assert patches.fitted(*shape, size, most) == expected
    assert patches.fitted(*shape[::-1], size, most) == expected[::-1]


def test_patches_are_cut_row_by_row():
    image = photo(12, 20)
    row = patches.blank((), 20, 4)
    patches.put(image, row)
    np.testing.assert_array_equal(row.grid, [3, 5])
    np.testing.assert_array_equal(row.pixels[6], image[4:8, 4:8])
    np.testing.assert_array_equal(together(row), image)
    assert not row.pixels[15:].any()


def test_preprocessing_resizes_both_sides_to_whole_patches():
    rule = Preprocess(16, resize='patches', interpolation='bilinear', patch_size=4, max_patches=10)
    image = Image.fromarray(photo(30, 70))
    row = rule(image)
    height, width = patches.fitted(30, 70, 4, 10)
    np.testing.assert_array_equal(together(row), image.resize((width, height), 2))
    assert row.pixels.shape == (10, 4, 4, 3)
    assert Preprocess.from_card(rule.card) == rule
    assert 'max_patches' not in Preprocess(16).card
    # An image of the size of the model is not left as it is.
    assert rule(photo(16, 16)).grid.tolist() == [3, 3]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'resize': 'patches', 'patch_size': 4}, "'patches' with max_patches None; expected a pos"),
        ({'resize': 'patches', 'max_patches': 4}, 'patch_size None; expected a positive integer'),
        ({'patch_size': 4}, "resize 'shortest' with patch_size 4; expected None"),
        ({'resize': 'patches', 'patch_size': 4, 'max_patches': True}, 'max_patches True'),
    ],
)
def test_wrong_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(16, **fields)


def encoded(image: np.ndarray, orientation: int) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(file, 'PNG', exif=exif)
    return file.getvalue()


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_crops_are_rectangles_of_upright_images(orientation):
    upright = photo(60, 140)
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    data = encoded(np.rot90(upright, turns), orientation)
    box, size = Box(20, 12, 100, 40), (16, 40)
    found = augment.resized_crop(data, box, size)
    expected = Image.fromarray(upright).resize(size[::-1], 3, box=(20, 12, 120, 52))
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 4


def test_augmented_crops_keep_the_aspect_ratio_and_fill_the_budget():
    image = photo(40, 120)
    row = patches.blank((), 12, 4)
    change = Augment(crop_scale=(1.0, 1.0))
    change(image, (40, 120), np.random.default_rng(0), row)
    assert row.grid.tolist() == [2, 6]
    whole = np.asarray(Image.fromarray(image).resize((24, 8), 3), int)
    assert np.abs(together(row) - whole).mean() < 3
    smaller = patches.blank((), 12, 4)
    Augment(crop_scale=(0.3, 0.3))(image, (40, 120), np.random.default_rng(0), smaller)
    assert smaller.grid.tolist() == [2, 6]
    assert np.ptp(together(smaller)[..., 0].astype(int)) < 0.7 * np.ptp(together(row)[..., 0])


def test_every_augmentation_takes_rectangles():
    options = {'flip': 1.0, 'randaugment': (2, 9), 'grayscale': 0.5, 'random_erasing': 1.0}
    change = Augment(**options, color_jitter=(0.4, 0.4, 0.4, 0.1))
    for seed in range(12):
        row = patches.blank((), 12, 4)
        change(photo(30, 90), (30, 90), np.random.default_rng(seed), row)
        assert row.grid.tolist() == [2, 6] and row.pixels.any()


def test_budgets_are_drawn_with_their_probabilities():
    drawn = [TWO.drawn(i) for i in range(4000)]
    assert abs(np.mean([most == 6 for most, _ in drawn]) - 0.25) < 0.03
    assert abs(np.mean([size == 4 for _, size in drawn]) - 0.5) < 0.03
    assert abs(np.mean([x == (6, 4) for x in drawn]) - 0.125) < 0.03
    assert drawn[:50] == [TWO.drawn(i) for i in range(50)]
    assert drawn[:50] != [Budgets(4, TWO.most, TWO.patch_sizes).drawn(i) for i in range(50)]
    assert TWO.largest == (12, 5)
    assert {Budgets(0, ((9, 1.0),), ((4, 1),)).drawn(i) for i in range(9)} == {(9, 4)}


@pytest.mark.parametrize(
    'pairs', [(), ((9, 0.5),), ((9, 0.5), (9, 0.5)), ((0, 1.0),), ((9.5, 1.0),), (9, 1.0), 'many']
)
def test_wrong_budgets_are_refused(pairs):
    with pytest.raises(ValueError, match=r'data\.budgets is .* such as \(\(128, 0.25\)'):
        Budgets(0, pairs, ((4, 1.0),))


def test_a_model_of_one_size_has_no_budgets():
    assert budgets.of_model(object(), 0, (), (), None) is None
    with pytest.raises(ValueError, match=r'data.patch_sizes is .* takes images of one'):
        budgets.of_model(object(), 0, (), ((4, 1.0),), None)


class Pictures:
    """Pictures of twenty aspect ratios."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> dict:
        return {'image': photo(10 + 5 * i, 110 - 5 * i), 'texts': [f'{i} 0']}

    def where(self, i: int) -> str:
        return f'picture {i}'


def tokenize(texts: list[str]) -> np.ndarray:
    return np.array([text.split() for text in texts], np.int32)


def first(count: int, *, start: int = 0, **options) -> list[dict]:
    made = pipeline.train_iterator(
        Pictures(), tokenize, batch_size=8, seed=5, image_size=12, budgets=TWO, **options
    )
    made.set_state({'global_next_index': 8 * start})
    with contextlib.closing(made) as iterator:
        return [next(iterator) for _ in range(count)]


def assert_same(found: list, expected: list) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_batches_have_what_was_drawn_whatever_makes_them():
    expected = first(8, num_threads=0)
    assert len({x['image'].pixels.shape for x in expected}) > 2
    for i, batch in enumerate(expected):
        most, size = TWO.drawn(i)
        assert batch['image'].pixels.shape == (8, most, size, size, 3)
        counts = batch['image'].grid.prod(axis=1)
        assert (counts <= most).all() and (counts > most / 2).all()
        wide = [i < 10 for i in batch['tokens'][:, 0]]
        assert (np.diff(batch['image'].grid, axis=1)[:, 0] >= 0)[wide].all()
    assert_same(first(8, num_threads=3), expected)
    assert_same(first(4, start=4), expected[4:])
    halves = [first(8, shard_index=i, shard_count=2) for i in (0, 1)]
    for whole, *parts in zip(expected, *halves, strict=True):
        both = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        assert_same([both['image'], both['tokens']], [whole['image'], whole['tokens']])


@pytest.mark.slow
def test_processes_make_the_same_batches():
    assert_same(first(4, num_workers=2), first(4))
