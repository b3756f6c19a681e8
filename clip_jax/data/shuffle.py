"""Which records a batch is made of: computed from its number, remembered nowhere."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROUNDS = 8  # of the Feistel network; four make it pseudorandom (Luby and Rackoff 1988)


class Part(NamedTuple):
    """Records from `start` to before `stop` of a source, and the share of rows that are theirs."""

    start: int
    stop: int
    weight: float


class GlobalShuffle:
    """The endless sequence of batches of records, each part of a source in epochs of its own.

    Every epoch is another permutation. Of one part, an epoch leaves out the last few of its own
    order, so that it ends with a batch: one that reached into the next epoch could hold an image
    twice, and the image would be its own negative. Of several, this may happen where an epoch ends.
    Batches have of each part what its weight gives, rounded so that no part falls behind.
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
        """Returns (epochs, records) of the rows of a global batch, int64 [batch_size] each."""
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
        if len(self._parts) > 1:  # hosts take blocks of a batch, and are to get some of each part
            mixed = shuffled(np.arange(len(record)), len(record), (self._seed, -1, number))
            epoch, record = epoch[mixed], record[mixed]
        return epoch, record

    def _used(self, number: int) -> list[int]:
        """How many rows of each part the batches before this one have."""
        rows = number * self._batch_size
        used = [int(rows * share) for share in self._shares]
        used[self._largest] += rows - sum(used)
        return used


def shuffled(places: np.ndarray, length: int, key: tuple[int, ...]) -> np.ndarray:
    """Returns what stands at `places` of the permutation of range(length) that belongs to a key.

    A Feistel network permutes the next power of four; what falls outside is sent through it again
    (cycle walking, Black and Rogaway 2002). It takes no memory, whatever the length.
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
    """Permutes numbers of 2 x half bits, uint64."""
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << shift | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Scatters all bits of 64 over all (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
