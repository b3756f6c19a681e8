"""Tables of a classifier's report: by class, confusions, mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

CLASSES = 40  # in a confusion matrix
MISTAKES = 24


def per_class(
    names: Sequence[str], counts: np.ndarray, values: np.ndarray
) -> list[list[str | int | float]]:
    """Returns [name, examples, value] of each class that has an example."""
    return [
        [names[k], int(counts[k]), float(values[k])]
        for k in np.flatnonzero(np.asarray(counts) > 0).tolist()
    ]


def confusion(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Counts examples by true class (rows) and predicted class (columns).

    `of` is the number of all classes. Of more than CLASSES, the matrix has those that are confused
    most often, in their order.
    """
    count = len(names)
    pairs, times = np.unique(labels * count + predicted, return_counts=True)
    right, guess = np.divmod(pairs, count)
    chosen = np.arange(count)
    if count > CLASSES:
        wrong = np.flatnonzero(right != guess)
        wrong = wrong[np.argsort(-times[wrong], kind='stable')]
        often = np.stack([right[wrong], guess[wrong]], axis=1).ravel().tolist()
        # Filled up with the first classes where too few are ever confused.
        chosen = np.sort(list(dict.fromkeys([*often, *range(count)]))[:CLASSES])
    matrix = np.zeros((len(chosen), len(chosen)), int)
    place = np.full(count, -1)
    place[chosen] = np.arange(len(chosen))
    inside = (place[right] >= 0) & (place[guess] >= 0)
    matrix[place[right[inside]], place[guess[inside]]] = times[inside]
    return {'classes': [names[k] for k in chosen.tolist()], 'matrix': matrix.tolist(), 'of': count}


def most_confident(wrong: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Returns the indices of the MISTAKES wrong examples with the largest margins."""
    places = np.flatnonzero(wrong)
    return places[np.argsort(-margins[places], kind='stable')][:MISTAKES]
