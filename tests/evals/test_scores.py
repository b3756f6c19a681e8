"""Metrics are those of scikit-learn, and of loops over thresholds and pairs."""

import fractions

import numpy as np
import pytest
from sklearn import metrics

from clip_jax.evals import _scores


def predictions(seed, n=200, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return np.where(rng.random(n) < 0.6, labels, rng.integers(0, classes, n)), labels


def rankings(seed, n=80, classes=5, levels=0):
    """Scores [n, classes], rounded to so many levels that many tie, and targets that they fit."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, classes)) < rng.uniform(0.05, 0.6, classes)
    targets[0] = True
    scores = rng.normal(size=(n, classes)) + targets
    return (np.round(scores * levels) / levels if levels else scores), targets


@pytest.mark.parametrize('seed', range(5))
def test_accuracies_are_those_of_scikit_learn(seed):
    predicted, labels = predictions(seed)
    assert _scores.accuracy(predicted, labels) == metrics.accuracy_score(labels, predicted)
    found = _scores.mean_per_class(predicted, labels, 7)
    assert found == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), rel=1e-14)


def test_mean_per_class_leaves_out_classes_without_examples():
    assert _scores.mean_per_class([0, 5, 1], [0, 0, 1], 6) == 0.75
    right, count = _scores.per_class([0, 5, 1], [0, 0, 1], 6)
    assert (right.tolist(), count.tolist()) == ([1, 1, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0])


@pytest.mark.parametrize('levels', [0, 1, 3])
@pytest.mark.parametrize('seed', range(5))
def test_average_precision_and_the_roc_curve_are_those_of_scikit_learn(seed, levels):
    scores, targets = rankings(seed, levels=levels)
    expected = metrics.average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(_scores.average_precisions(scores, targets), expected, rtol=1e-13)
    for k in range(scores.shape[1]):
        found = _scores.roc_auc(scores[:, k], targets[:, k])
        assert found == pytest.approx(metrics.roc_auc_score(targets[:, k], scores[:, k]), rel=1e-13)


@pytest.mark.parametrize('levels', [0, 1, 3])
@pytest.mark.parametrize('seed', range(5))
def test_11_points_are_those_of_a_loop_over_thresholds(seed, levels):
    scores, targets = rankings(seed, levels=levels)
    classes = []
    for column, truth in zip(scores.T, targets.T, strict=True):
        points = []
        for tenths in range(11):
            best = fractions.Fraction(0)
            for threshold in set(column.tolist()):
                inside = column >= threshold
                right = int((inside & truth).sum())
                if fractions.Fraction(right, int(truth.sum())) >= fractions.Fraction(tenths, 10):
                    best = max(best, fractions.Fraction(right, int(inside.sum())))
            points.append(best)
        classes.append(sum(points) / 11)
    expected = float(sum(classes) / len(classes))
    assert _scores.map_11_point(scores, targets) == pytest.approx(expected, rel=1e-14)


def test_11_points_of_a_ranking_by_hand():
    # Positives at places 1, 3 and 5 of 5: recall 1/3, 2/3, 1 at precision 1, 2/3, 3/5.
    scores, targets = np.array([[5.0, 4, 3, 2, 1]]).T, np.array([[1, 0, 1, 0, 1]], bool).T
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11
    assert _scores.map_11_point(scores, targets) == pytest.approx(expected)


@pytest.mark.parametrize('seed', range(5))
def test_a_tie_is_half_a_pair(seed):
    scores, targets = rankings(seed, levels=1)
    positive, negative = scores[targets[:, 0], 0], scores[~targets[:, 0], 0]
    pairs = positive[:, None] - negative[None, :]
    expected = ((pairs > 0).sum() + 0.5 * (pairs == 0).sum()) / pairs.size
    assert (pairs == 0).any()
    assert _scores.roc_auc(scores[:, 0], targets[:, 0]) == expected


def test_the_order_of_examples_does_not_matter_even_where_they_tie():
    scores, targets = rankings(0, levels=1)
    shuffled = np.random.default_rng(1).permutation(len(scores))
    for metric in _scores.map_11_point, _scores.average_precisions:
        again = metric(scores[shuffled], targets[shuffled])
        np.testing.assert_array_equal(again, metric(scores, targets))
    first = scores[:, 0], targets[:, 0]
    assert _scores.roc_auc(*(x[shuffled] for x in first)) == _scores.roc_auc(*first)


def test_classes_without_examples_do_not_count():
    scores, targets = rankings(0)
    expected = _scores.map_11_point(scores[:, 1:], targets[:, 1:])
    targets[:, 0] = False
    assert _scores.map_11_point(scores, targets) == expected
    assert np.isnan(_scores.average_precisions(scores, targets)[0])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: _scores.accuracy([1, 2], [1]), r'shapes \(2,\) and \(1,\)'),
        (lambda: _scores.accuracy([], []), 'not empty'),
        (lambda: _scores.mean_per_class([0, 1], [0, 7], 7), 'go from 0 to 7; expected those of 7'),
        (lambda: _scores.mean_per_class([0, 1], [0, -1], 7), 'go from -1 to 0'),
        (lambda: _scores.roc_auc([0.1, 0.2], [True, True]), '2 positive and 0 negative'),
        (lambda: _scores.roc_auc([0.1, np.nan], [True, False]), 'not finite'),
        (lambda: _scores.map_11_point([[0.1], [0.2]], [[False], [False]]), 'no example belongs'),
        (lambda: _scores.map_11_point([0.1, 0.2], [True, False]), '2 dimension'),
    ],
)
def test_what_has_no_score_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
