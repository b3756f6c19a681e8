"""Bootstrap intervals are those of resampling images one by one."""

import numpy as np
import pytest

from clip_jax.evals import _intervals, _scores


def resampled(n, statistic, resamples=4000):
    rng = np.random.default_rng(7)
    values = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    return np.quantile(values, [0.025, 0.975])


def check(found, expected):
    """Both are ends of samples of thousands: equal but for a twentieth of the width."""
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found, expected, atol=0.05 * width)


def test_of_a_fraction():
    right = np.random.default_rng(0).random(300) < 0.8
    found = _intervals.of_fraction(int(right.sum()), 300)
    check(found, resampled(300, lambda rows: right[rows].mean()))
    assert found[0] < right.mean() < found[1]


def test_of_the_mean_over_classes():
    rng = np.random.default_rng(1)
    labels = rng.choice(6, 250, p=[0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    guess = np.where(rng.random(250) < 0.1 + 0.15 * labels, labels, (labels + 1) % 6)
    right, counts = _scores.per_class(guess, labels, 7)  # the last class has no image
    found = _intervals.of_mean_per_class(right, counts)
    check(found, resampled(250, lambda x: _scores.mean_per_class(guess[x], labels[x], 7)))
    wrong = _intervals.of_fraction(int(right.sum()), 250)
    assert found[1] - found[0] > 1.2 * (wrong[1] - wrong[0])  # rare classes are uncertain


def test_a_class_that_a_resample_has_no_image_of_does_not_count():
    # A third of the resamples lacks the first class, whose image is wrong: their mean is 1.
    right, counts = np.array([0, 9]), np.array([1, 9])
    assert _intervals.of_mean_per_class(right, counts) == (0.5, 1.0)


def test_of_captions_whose_images_are_resampled():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 6, 200)
    easy = rng.random(200) < 0.5  # all captions of an image are found, or none
    hits = np.where(easy, sizes, 0)
    found = _intervals.of_clusters(hits, sizes)
    check(found, resampled(200, lambda rows: hits[rows].sum() / sizes[rows].sum()))
    alone = _intervals.of_fraction(int(hits.sum()), int(sizes.sum()))
    assert found[1] - found[0] > 1.5 * (alone[1] - alone[0])


def test_the_same_counts_have_the_same_interval_however_many_are_drawn_at_a_time(monkeypatch):
    right, counts = np.array([3, 5, 8]), np.array([9, 9, 9])
    expected = _intervals.of_mean_per_class(right, counts)
    for cells in 1, 600, 10**6:
        monkeypatch.setattr(_intervals, 'CELLS', cells)
        assert _intervals.of_mean_per_class(right, counts) == expected


@pytest.mark.parametrize(
    'found',
    [
        _intervals.of_fraction(0, 10),
        _intervals.of_fraction(10, 10),
        _intervals.of_fraction(1, 1),
        _intervals.of_mean_per_class(np.array([0, 0]), np.array([3, 4])),
        _intervals.of_mean_per_class(np.array([3, 4]), np.array([3, 4])),
        _intervals.of_clusters(np.array([2, 2]), np.array([5, 5])),
    ],
)
def test_images_that_are_all_alike_say_nothing(found):
    assert found is None


def test_one_class_is_a_fraction():
    found = _intervals.of_mean_per_class(np.array([7]), np.array([10]))
    assert found == _intervals.of_fraction(7, 10)


def test_of_values_between_0_and_1():
    values = np.random.default_rng(4).choice([0, 1 / 3, 0.5, 1], 150)
    check(_intervals.of_mean(values), resampled(150, lambda rows: values[rows].mean()))
    assert _intervals.of_mean(np.array([0.5, 0.5])) is None
