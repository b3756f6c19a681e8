"""Every record of a source once: read by threads, given in order, checked, with the time left."""

import collections
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright
from clip_jax.data.sources import Source

CHUNK = 8  # records that a thread takes at a time
LINE_EVERY = 10.0  # seconds between lines where there is no terminal

# What reading a record may raise; of these, BadRecord (a ValueError) alone lets a run go on.
ERRORS = (ValueError, RuntimeError, OSError)

T = TypeVar('T')


def check(example: Mapping[str, Any], *, decode: bool) -> np.ndarray | None:
    """BadRecord if training cannot use a record; returns its image, uint8 RGB, if it is to `decode`
    it, else judges it by its header alone.

    A record may lack captions if it has a label.
    """
    if not example.get('texts') and not labels_of(example):
        raise BadRecord('no_caption', 'neither a caption nor a label')
    image = example.get('image', b'')
    upright.measure(image)
    return upright.decode(image) if decode else None


def labels_of(example: Mapping[str, Any]) -> list[int]:
    """The classes that a record belongs to."""
    return [k for k in example.get('labels', [example.get('label', -1)]) if k >= 0]


def why(source: Source, i: int, error: Exception) -> str:
    """Says why record i cannot be used, and where it lies unless the error does."""
    where, message = source.where(i), str(error)
    return message if where in message else f'{where}: {message}'


def in_order(
    function: Callable[[int], T], start: int, stop: int, *, threads: int, ahead: int = 0
) -> Iterator[T]:
    """Yields function(i) for start <= i < stop, in this order, made by threads.

    No more than 2 x CHUNK results a thread exist at a time or, if that is more, `ahead`.
    """
    tasks = max(2 * threads, -(-ahead // CHUNK))

    def some(first: int) -> list[T]:
        return [function(i) for i in range(first, min(first + CHUNK, stop))]

    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()
        try:
            for first in range(start, stop, CHUNK):
                waiting.append(pool.submit(some, first))
                if len(waiting) >= tasks:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            # Whoever stops early waits for what has begun only.
            pool.shutdown(wait=False, cancel_futures=True)


class Progress:
    """Says on stderr how many records are done, how fast, and how long the others will take: a bar
    on a terminal, elsewhere a line now and then.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what, self._total, self._first, self.done = what, total, done, done
        self._begun = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=what, total=total, initial=done, unit=' records', leave=False)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def rate(self) -> float:
        """Records a second since the start, without those that were done before."""
        return (self.done - self._first) / max(1e-9, time.monotonic() - self._begun)

    def advance(self, count: int = 1) -> None:
        """Counts records that are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= LINE_EVERY:
            self._said = time.monotonic()
            left = timedelta(seconds=round((self._total - self.done) / self.rate))
            print(
                f'{self._what}: {self.done:,} of {self._total:,} records, {self.rate:,.0f} a '
                f'second, {left} left',
                file=sys.stderr,
                flush=True,
            )
