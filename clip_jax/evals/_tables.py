"""What a classifier's report says class by class and picture by picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

CLASSES = 40  # of a confusion matrix; of more classes, those of the most frequent confusions
MISTAKES = 24


def per_class(
    names: Sequence[str], counts: np.ndarray, values: np.ndarray
) -> list[tuple[str, int, float]]:
    """[name, examples, value] of each class that has an example."""
    return [
        [names[k], int(counts[k]), float(values[k])] for k in np.flatnonzero(np.asarray(counts) > 0)
    ]


def confusion(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How many examples of each class (rows) are taken for each (columns).

    `of` is the number of all classes; of more than CLASSES, those stand there that are most often
    taken for each other, in their order.
    """
    count = len(names)
    pairs, times = np.unique(labels * count + predicted, return_counts=True)
    right, guess = np.divmod(pairs, count)
    chosen = np.arange(count)
    if count > CLASSES:
        wrong = np.flatnonzero(right != guess)
        wrong = wrong[np.argsort(-times[wrong], kind='stable')]
        often = np.stack([right[wrong], guess[wrong]], axis=1).ravel().tolist()
        # Filled up with the first classes where too few are ever mistaken.
        chosen = np.sort(list(dict.fromkeys([*often, *range(count)]))[:CLASSES])
    matrix = np.zeros((len(chosen), len(chosen)), int)
    place = np.full(count, -1)
    place[chosen] = np.arange(len(chosen))
    inside = (place[right] >= 0) & (place[guess] >= 0)
    matrix[place[right[inside]], place[guess[inside]]] = times[inside]
    return {'classes': [names[k] for k in chosen], 'matrix': matrix.tolist(), 'of': count}


def most_confident(wrong: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The places of the MISTAKES wrong examples with the largest margins, largest first."""
    places = np.flatnonzero(wrong)
    return places[np.argsort(-margins[places], kind='stable')][:MISTAKES]
