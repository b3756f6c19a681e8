"""The training console: one line for each logged step."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from clip_jax.metrics._writer import Writer, to_python


class Progress(Writer):
    """Prints the progress of training: step, loss, accuracy, speed and remaining time.

    Scalars without 'loss' are those of evaluations: one line for each group, with all scores.

    Args:
        total_steps: the number of the last step.
        batch_size: examples per step.
        start_step: the step that the run resumes from.
        unit: what an example is, in the plural.
        stream: where lines are printed; by default stderr.
        clock: the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        *,
        start_step: int = 0,
        unit: str = 'pairs',
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._batch_size, self._unit = total_steps, batch_size, unit
        self._stream, self._clock = stream or sys.stderr, clock
        self._began = clock()
        self._last = (start_step, self._began)
        self._paused = 0.0
        self._first = None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time of evaluations and checkpoints out of the speed."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def rate(self, step: int) -> float:
        """Returns the examples per second since the last line of training, without pauses."""
        last_step, last_time = self._last
        seconds = self._clock() - last_time - self._paused
        return (step - last_step) * self._batch_size / max(seconds, 1e-9)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        numbers = to_python(scalars)
        lines = self._training(step, numbers) if 'loss' in numbers else _groups(numbers)
        width = len(f'{self._total:,}')
        share = 100 * step // max(self._total, 1)
        for line in lines:
            print(f'step {step:>{width},}/{self._total:,} {share:3d} %  {line}', file=self._stream)
        self._stream.flush()

    def _training(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        parts = [f'loss {numbers["loss"]:#6.4g}']
        if 'accuracy/image_to_text' in numbers:
            parts.append(f'accuracy {100 * numbers["accuracy/image_to_text"]:5.1f} %')
        parts.append(f'{self.rate(step):8,.0f} {self._unit}/s')
        if skipped := sum(v for k, v in numbers.items() if k.startswith('skipped/')):
            parts.append(f'{skipped:,.0f} updates skipped')
        now = self._clock()
        if step >= self._total:
            parts.append(f'{duration(now - self._began)} in all')
        elif self._first is None:
            # The time until the first line includes compilation: no estimate before the second.
            self._first = (step, now)
        elif step > self._first[0]:
            first_step, first_time = self._first
            left = (now - first_time) / (step - first_step) * (self._total - step)
            parts.append(f'{duration(left)} left')
        self._last, self._paused = (step, now), 0.0
        return ['  '.join(parts)]


def duration(seconds: float) -> str:
    """Formats a duration: '4.2 s', '2 min 13 s', '3 h 05 min', '2 d 04 h'."""
    if seconds < 10:
        return f'{max(seconds, 0.0):.1f} s'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours:02d} h'
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


def _groups(numbers: Mapping[str, float]) -> list[str]:
    """Formats each group of scores 'group/name' as one line: 'group: name 0.1  name 0.2'."""
    lines: dict[str, list[str]] = {}
    for name, value in numbers.items():
        group, _, last = name.rpartition('/')
        lines.setdefault(group, []).append(
            f'{last} {value:,}' if isinstance(value, int) else f'{last} {value:#.4g}'
        )
    return [(f'{group}: ' if group else '') + '  '.join(words) for group, words in lines.items()]
