"""Stateless global shuffle: the records of a batch are computed from the number of the batch.

Unlike grain's shuffle, it is vectorized over a batch and mixes several sources exactly by weight.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROUNDS = 8  # of the Feistel network; four make it pseudorandom (Luby and Rackoff 1988)


class Part(NamedTuple):
    """The records from `start` to before `stop` of a source, and their weight in batches."""

    start: int
    stop: int
    weight: float


class GlobalShuffle:
    """The infinite sequence of batches; each part of a source has its own epochs.

    Every epoch is a new permutation. With one part, an epoch drops the last incomplete batch: a
    batch across two epochs could hold an image twice, and the image would be its own negative. With
    several parts, that may happen at the end of an epoch. Batches contain each part in proportion
    to its weight, rounded so that no part falls behind.

    Args:
        parts: the parts of the source.
        batch_size: examples per global batch.
        seed: the seed of the permutations.
    """

    def __init__(self, parts: Sequence[Part], batch_size: int, seed: int):
        self._parts, self._batch_size, self._seed = list(parts), batch_size, seed
        self._lengths = [part.stop - part.start for part in parts]
        if len(parts) == 1:
            if self._lengths[0] < batch_size:
                raise ValueError(
                    f'batch_size {batch_size} is larger than the data set, which has '
                    f'{self._lengths[0]} examples: an image would be its own negative. Use a '
                    'smaller batch or more data.'
                )
            self._lengths[0] -= self._lengths[0] % batch_size
        total = sum(part.weight for part in parts)
        self._shares = [part.weight / total for part in parts]
        self._largest = max(range(len(parts)), key=lambda k: parts[k].weight)
        if batch_size < len(parts) * (len(parts) - 1):
            raise ValueError(f'batch_size {batch_size} is too small to mix {len(parts)} sources')

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (epochs, records) of the examples of a global batch, int64 [batch_size] each."""
        begin, end = self._used(number), self._used(number + 1)
        epochs, records = [], []
        for k, part in enumerate(self._parts):
            place = np.arange(begin[k], end[k])
            epoch = place // self._lengths[k]
            record = np.empty_like(place)
            for one in range(epoch[0], epoch[-1] + 1) if len(epoch) else ():
                here = epoch == one
                record[here] = shuffled(
                    place[here] % self._lengths[k], part.stop - part.start, (self._seed, k, one)
                )
            epochs.append(epoch)
            records.append(part.start + record)
        epoch, record = np.concatenate(epochs), np.concatenate(records)
        if len(self._parts) > 1:  # hosts take blocks of a batch, and each should get all parts
            mixed = shuffled(np.arange(len(record)), len(record), (self._seed, -1, number))
            epoch, record = epoch[mixed], record[mixed]
        return epoch, record

    def _used(self, number: int) -> list[int]:
        """Returns how many examples of each part the batches before this one have."""
        total = number * self._batch_size
        used = [int(total * share) for share in self._shares]
        used[self._largest] += total - sum(used)
        return used


def shuffled(places: np.ndarray, length: int, key: tuple[int, ...]) -> np.ndarray:
    """Evaluates a pseudorandom permutation of range(length) at some places.

    A Feistel network permutes the next power of four; results outside of the range are permuted
    again (cycle walking, Black and Rogaway 2002). It needs no memory, whatever the length.

    Args:
        places: int64 [n], from 0 to length - 1.
        length: the length of the permutation.
        key: selects the permutation.

    Returns:
        int64 [n].
    """
    half = max(1, -(-max(1, length - 1).bit_length() // 2))
    keys = _round_keys(tuple(k % 2**64 for k in key))
    found = _feistel(places.astype(np.uint64), half, keys)
    while (outside := found >= length).any():
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


@functools.lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)


def _feistel(numbers: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """Permutes uint64 numbers of 2 x half bits."""
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << shift | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Mixes 64 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
