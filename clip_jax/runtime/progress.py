"""Progress of long work: a bar on a terminal, elsewhere a line in the log every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from absl import logging
from tqdm import tqdm

LOG_EVERY = 10.0  # seconds

T = TypeVar('T')


class Progress:
    """Shows how much of a task is done, how fast, and how long the rest will take.

    Args:
        what: the name of the task, which comes first.
        total: how many items there are; None if that is not known, and then nothing is logged.
        done: how many of them were done before; they do not count for the speed.
        unit: what an item is, in the plural.
        log: whether there are lines in the log where stderr is not a terminal.
        delay: seconds before a bar appears.
        clock: the time in seconds.
    """

    def __init__(
        self,
        what: str = '',
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = 'records',
        log: bool = True,
        delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.done = done
        self._what, self._total, self._unit, self._first = what, total or 0, unit, done
        self._log = log and total is not None
        self._clock, self._started, self._logged = clock, clock(), clock()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=what or None,
                total=total,
                initial=done,
                unit=f' {unit}',
                leave=False,
                delay=delay,
            )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def rate(self) -> float:
        """Items per second since the start, without those that were done before."""
        return (self.done - self._first) / max(1e-9, self._clock() - self._started)

    def describe(self, what: str) -> None:
        """Changes the name of the task."""
        self._what = what
        if self._bar is not None:
            self._bar.set_description(what)

    def advance(self, count: int = 1) -> None:
        """Counts items that are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._log and self._clock() - self._logged >= LOG_EVERY:
            self._logged = self._clock()
            left = (self._total - self.done) / max(1e-9, self.rate)
            logging.info(
                '%s: %s of %s %s, %s per second, %s left',
                self._what,
                f'{self.done:,}',
                f'{self._total:,}',
                self._unit,
                _number(self.rate),
                timedelta(seconds=round(left)),
            )


def track(
    items: Iterable[T], what: str, total: int, *, unit: str = 'records', delay: float = 0.0
) -> Iterator[T]:
    """Yields the items and shows the progress."""
    with Progress(what, total, unit=unit, delay=delay) as progress:
        for item in items:
            yield item
            progress.advance()


def _number(rate: float) -> str:
    return f'{rate:,.0f}' if rate >= 10 else f'{rate:.1f}'
