"""Reads every record of a source once: in threads, in order, and checked."""

import collections
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright
from clip_jax.data.sources import Source

CHUNK = 8  # records that a thread takes at a time

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


def error_message(source: Source, i: int, error: Exception) -> str:
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
