"""Groups of rows that pairs connect, in memory that grows with the rows and not with the pairs."""

import itertools
from collections.abc import Iterable

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

AT_ONCE = 1 << 20  # pairs that are collected before groups are joined


def stars(pairs: np.ndarray) -> np.ndarray:
    """Returns fewer pairs, int64 [M, 2], that connect the same rows as the pairs [N, 2] do.

    Each row is connected to the first of its group, so that M is below the number of rows.
    """
    rows, numbers = np.unique(pairs, return_inverse=True)
    first = rows[_firsts(len(rows), numbers.reshape(-1, 2))]
    return np.stack([first, rows], axis=1)[first != rows]


def firsts(count: int, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the first row of the group of each row, int64 [count].

    Args:
        count: the number of rows.
        batches: pairs of rows that are in one group, int64 [N, 2] each.
    """
    found, waiting, size = np.arange(count), [], 0
    for pairs in itertools.chain(batches, [None]):
        if pairs is not None:
            waiting.append(pairs)
            size += len(pairs)
        if size and (pairs is None or size >= AT_ONCE):
            known = np.stack([found, np.arange(count)], axis=1)
            found = _firsts(count, np.concatenate([known, *waiting]))
            waiting, size = [], 0
    return found


def _firsts(count: int, pairs: np.ndarray) -> np.ndarray:
    graph = sparse.coo_array((np.ones(len(pairs), bool), pairs.T), (count, count))
    groups, labels = csgraph.connected_components(graph, directed=False)
    first = np.empty(groups, np.int64)
    first[labels[::-1]] = np.arange(count)[::-1]  # the last that is assigned is the first row
    return first[labels]
