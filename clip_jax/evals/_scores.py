"""Metrics of classifiers on NumPy arrays, computed exactly from integer counts."""

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of predicted classes, int [N], that equal the labels, int [N]."""
    predicted, labels = _pair(predicted, labels)
    return int(np.sum(predicted == labels)) / len(labels)


def mean_per_class(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Returns the mean of the accuracies of all classes that have examples."""
    right, count = per_class(predicted, labels, classes)
    return float(np.mean(right[count > 0] / count[count > 0]))


def macro_f1(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Returns the mean of the F1 scores, the harmonic means of precision and recall, of all classes
    that have examples.
    """
    right, count = per_class(predicted, labels, classes)
    guessed = np.bincount(predicted, minlength=classes)
    own = count > 0
    return float(np.mean(2 * right[own] / (guessed[own] + count[own])))


def per_class(
    predicted: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of correct predictions and of examples of each class, int [classes]."""
    predicted, labels = _pair(predicted, labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f'scores: labels go from {labels.min()} to {labels.max()}; expected those of '
            f'{classes} classes, from 0'
        )
    right = np.bincount(labels[predicted == labels], minlength=classes)
    return right, np.bincount(labels, minlength=classes)


def map_11_point(scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean average precision of PASCAL VOC 2007 (Everingham et al., IJCV 88, 2010,
    section 4.2): the best precision at recalls of at least 0, 0.1, ..., 1, averaged; then the mean
    over classes with an example. Tied examples share a threshold.

    Args:
        scores: [N, C].
        targets: bool [N, C].
    """
    return float(np.nanmean(average_precisions(scores, targets, points=11)))


def average_precisions(scores: np.ndarray, targets: np.ndarray, *, points: int = 0) -> np.ndarray:
    """Returns the average precision of each class, [C]: the precision at each threshold, weighted
    by the increase in recall. NaN for a class without an example.

    Args:
        scores: [N, C].
        targets: bool [N, C].
        points: number of recall levels, as in `map_11_point`; 0 for all thresholds.
    """
    scores, targets = _pair(scores, targets, dimensions=2)
    if not targets.any():
        raise ValueError('scores: no example belongs to any class; precision is not defined')
    found = np.full(scores.shape[1], np.nan)
    for k in np.flatnonzero(targets.any(axis=0)):
        right, admitted = _curve(scores[:, k], targets[:, k])
        precision = right / admitted
        if points:
            # The best precision at this recall or a higher one.
            best = np.maximum.accumulate(precision[::-1])[::-1]
            # recall >= i / (points - 1), in integers
            needed = np.arange(points) * right[-1]
            found[k] = best[np.searchsorted(right * (points - 1), needed)].mean()
        else:
            found[k] = np.sum(np.diff(right, prepend=0) * precision) / right[-1]
    return found


def roc_auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns the area under the ROC curve: the fraction of pairs of a positive and a negative
    example in which the positive has the higher score; ties count half.

    Args:
        scores: [N].
        targets: bool [N].
    """
    scores, targets = _pair(scores, targets)
    positives = int(targets.sum())
    negatives = len(targets) - positives
    if not positives or not negatives:
        raise ValueError(
            f'scores: {positives} positive and {negatives} negative examples; the area under the '
            'ROC curve needs both'
        )
    right, admitted = _curve(scores, targets)
    new_right, new_wrong = np.diff(right, prepend=0), np.diff(admitted - right, prepend=0)
    # Negatives at a threshold are below the positives of higher ones, and tie with its own.
    twice = np.sum(new_wrong * (2 * (right - new_right) + new_right))
    return int(twice) / (2 * positives * negatives)


def _curve(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each distinct score from the highest, the number of positives and of examples
    with at least that score.
    """
    order = np.argsort(-scores, kind='stable')
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return np.cumsum(targets[order], dtype=np.int64)[last], last + 1


def _pair(
    values: np.ndarray, truths: np.ndarray, *, dimensions: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as arrays; ValueError if they are empty, not finite or of different shapes."""
    values, truths = np.asarray(values), np.asarray(truths)
    if values.shape != truths.shape or values.ndim != dimensions or not values.size:
        raise ValueError(
            f'scores: arrays of shapes {values.shape} and {truths.shape}; expected equal shapes, '
            f'{dimensions} dimension(s), not empty'
        )
    if not np.isfinite(values).all():
        raise ValueError('scores: some are not finite, so they cannot be ranked')
    return values, truths
