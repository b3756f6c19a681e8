"""95 % bootstrap confidence intervals of scores over images (Efron, Annals of Statistics 7, 1979).

Images that contribute the same to a score are interchangeable, so that resampling images is
drawing how often each kind of image occurs, from a multinomial distribution. This is exact, and its
cost does not depend on the number of images.
"""

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
SEED = 0
CELLS = 2**22  # counts that are drawn at a time

Interval = tuple[float, float]


def of_kinds(counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
    """Returns the percentile interval of a statistic of how often each kind of image occurs.

    Args:
        counts: images of each kind, int [K].
        statistic: counts of resampled images, int [R, K] -> values, float [R].

    Returns:
        The interval (low, high), always the same; None if images of one kind are all there is,
        since resampling then says nothing.
    """
    counts = np.asarray(counts)
    if np.count_nonzero(counts) < 2:
        return None
    rng, total = np.random.default_rng(SEED), int(counts.sum())
    size = max(1, CELLS // len(counts))
    values = [
        statistic(rng.multinomial(total, counts / total, size=min(size, RESAMPLES - start)))
        for start in range(0, RESAMPLES, size)
    ]
    low, high = np.quantile(np.concatenate(values), LEVELS)
    return float(low), float(high)


def of_fraction(hits: int, count: int) -> Interval | None:
    """Returns the interval of a fraction of images, `hits` of `count`; None if it is 0 or 1."""
    return of_kinds(np.array([hits, count - hits]), lambda kinds: kinds[:, 0] / count)


def of_mean(values: np.ndarray) -> Interval | None:
    """Returns the interval of the mean of values, float [N], few of which differ."""
    kinds, counts = np.unique(values, return_counts=True)
    return of_kinds(counts, lambda drawn: drawn @ kinds / len(values))


def of_mean_per_class(right: np.ndarray, counts: np.ndarray) -> Interval | None:
    """Returns the interval of the mean accuracy of classes.

    Args:
        right: correct predictions of each class, int [K].
        counts: images of each class, int [K].

    Returns:
        The interval; as in the score, a class that a resample has no image of does not count.
    """
    some = counts > 0
    right, wrong = right[some], (counts - right)[some]

    def mean(kinds: np.ndarray) -> np.ndarray:
        hits, images = kinds[:, : len(right)], kinds[:, : len(right)] + kinds[:, len(right) :]
        accuracy = np.divide(hits, images, out=np.zeros(hits.shape), where=images > 0)
        return accuracy.sum(axis=1) / np.count_nonzero(images, axis=1)

    if not right.any() or not wrong.any():
        return None
    return of_kinds(np.concatenate([right, wrong]), mean)


def of_clusters(hits: np.ndarray, sizes: np.ndarray) -> Interval | None:
    """Returns the interval of a fraction of items that come in clusters, such as the captions of
    images: clusters are resampled with all their items.

    Args:
        hits: items of each cluster that count, int [N].
        sizes: items of each cluster, int [N].

    Returns:
        The interval; None if all clusters are alike.
    """
    kinds, counts = np.unique(np.stack([hits, sizes]), axis=1, return_counts=True)
    return of_kinds(counts, lambda drawn: (drawn @ kinds[0]) / (drawn @ kinds[1]))
