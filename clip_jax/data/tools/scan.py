"""Reads every record of a source once: in threads, in order, and checked."""

import collections
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from clip_jax.data.errors import BadRecord
from clip_jax.data.image import upright
from clip_jax.data.image.opening import MAX_PIXELS
from clip_jax.data.sources import Source

CHUNK = 8  # records per task of a thread

# What reading a record may raise; a run survives only BadRecord (a ValueError).
ERRORS = (ValueError, RuntimeError, OSError)

T = TypeVar('T')


def check(
    example: Mapping[str, Any], *, decode: bool, max_pixels: int = MAX_PIXELS
) -> np.ndarray | None:
    """Raises BadRecord if a record cannot be used; it needs an image, and a caption or a label.

    Args:
        example: the record.
        decode: whether to decode the image; otherwise only its header is read.
        max_pixels: images with more are refused.

    Returns:
        The image, uint8 RGB [height, width, 3]; None without `decode`.
    """
    if not example.get('texts') and not labels_of(example):
        raise BadRecord('no_caption', 'neither a caption nor a label')
    image = example.get('image', b'')
    upright.measure(image, max_pixels=max_pixels)
    return upright.decode(image, max_pixels=max_pixels) if decode else None


def labels_of(example: Mapping[str, Any]) -> list[int]:
    """The classes of a record."""
    return [k for k in example.get('labels', [example.get('label', -1)]) if k >= 0]


def error_message(source: Source, i: int, error: Exception) -> str:
    """Returns the message of an error of record i, with its place if the message lacks it."""
    where, message = source.where(i), str(error)
    return message if where in message else f'{where}: {message}'


def in_order(
    function: Callable[[int], T], start: int, stop: int, *, threads: int, ahead: int = 0
) -> Generator[T, None, None]:
    """Yields function(i) for start <= i < stop in this order, computed in threads.

    At most 2 x CHUNK results per thread are in memory or, if that is more, `ahead`.
    """
    tasks = max(2 * threads, -(-ahead // CHUNK))

    def chunk(first: int) -> list[T]:
        return [function(i) for i in range(first, min(first + CHUNK, stop))]

    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()
        try:
            for first in range(start, stop, CHUNK):
                waiting.append(pool.submit(chunk, first))
                if len(waiting) >= tasks:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            # A caller that stops early waits only for tasks that have started.
            pool.shutdown(wait=False, cancel_futures=True)
