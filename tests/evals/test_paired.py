"""Two models on the same images: McNemar's test, and what is not compared."""

import json

import numpy as np
import pytest
from scipy import stats

from clip_jax import evals
from clip_jax.evals import _paired


def report(right, truth='abc', **changes):
    packed = {'top1': _paired.packed(right, truth)}
    made = {'type': 'zeroshot', 'data': 'tfds:pets', 'data_options': {}, 'correct': packed}
    return json.loads(json.dumps(made)) | changes


@pytest.mark.parametrize('count', [1, 7, 8, 9, 1000])
def test_bits_come_back(count):
    right = np.random.default_rng(count).random(count) < 0.5
    packed = json.loads(json.dumps(_paired.packed(right, [])))
    np.testing.assert_array_equal(_paired.unpacked(packed), right)
    assert len(packed['bits']) <= 4 + count / 6


@pytest.mark.parametrize(('seed', 'n'), [(0, 20), (1, 300), (2, 20_000)])
def test_the_test_is_that_of_scipy(seed, n):
    rng = np.random.default_rng(seed)
    one, other = rng.random(n) < 0.7, rng.random(n) < 0.66
    [found] = evals.compare(report(one), report(other))
    wins, losses = (one & ~other).sum(), (other & ~one).sum()
    assert (found.wins, found.losses, found.images) == (wins, losses, n)
    assert found.p_value == pytest.approx(stats.binomtest(int(wins), int(wins + losses)).pvalue)
    assert found.difference == pytest.approx(one.mean() - other.mean())
    [back] = evals.compare(report(other), report(one))
    assert back.p_value == found.p_value and back.difference == -found.difference


def test_the_interval_of_the_difference_is_that_of_resampled_images():
    rng = np.random.default_rng(3)
    one, other = rng.random(400) < 0.7, rng.random(400) < 0.6
    other[:250] = one[:250]  # most answers are the same, which makes the difference more certain
    [found] = evals.compare(report(one), report(other))
    differences = []
    for _ in range(4000):
        rows = rng.integers(0, 400, 400)
        differences.append(one[rows].mean() - other[rows].mean())
    low, high = np.quantile(differences, [0.025, 0.975])
    np.testing.assert_allclose(found.interval, [low, high], atol=0.1 * (high - low))


def test_known_answers():
    def p_value(wins, losses, both=5):
        one = [1] * wins + [0] * losses + [1] * both
        other = [0] * wins + [1] * losses + [1] * both
        [found] = evals.compare(report(one), report(other))
        return found.p_value

    assert p_value(0, 0) == 1
    assert p_value(1, 0) == p_value(3, 3) == 1
    assert p_value(6, 0) == 2 / 2**6
    assert p_value(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    [equal] = evals.compare(report([1, 0]), report([1, 0]))
    assert (equal.difference, equal.interval) == (0, None)


@pytest.mark.parametrize(
    ('other', 'why'),
    [
        (report([1, 0], type='retrieval'), 'different evaluations: zeroshot and retrieval'),
        (report([1, 0], data='tfds:cars'), 'different data: tfds:pets and tfds:cars'),
        (report([1, 0], data_options={'a': 1}), 'different data options'),
        (report([1, 0, 1]), 'different images: 2 and 3 of them'),
        (report([1, 0], truth='abd'), 'different images: their labels or captions differ'),
        (report([1, 0], correct={}), 'does not say which images are right'),
        (report([1, 0], correct={'x': {}}), 'different scores: top1 and x'),
        (report([1, 0], correct={'top1': {'images': 2, 'bits': 'a'}}), 'not as clip-jax eval'),
        (report([1, 0], correct={'top1': {'images': 99, 'bits': 'gA=='}}), '1 bytes of 99 images'),
        (report([1, 0], correct={'top1': {'images': 2}}), 'not as clip-jax eval'),
    ],
)
def test_what_is_not_the_same_is_not_compared(other, why):
    with pytest.raises(ValueError, match=why):
        evals.compare(report([1, 1]), other)
