"""Where numbers go: lines for people, metrics.jsonl for programs, TensorBoard for curves.

Method names are those of clu's MetricWriter, so that a clu writer can join ours in a MultiWriter.
"""

import contextlib
import io
import itertools
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from etils import epath

from clip_jax.runtime import atomic

SEND_EVERY = 60.0  # seconds between two uploads of a growing file to object storage
_NUMBER_OF_WRITER = itertools.count()


class Writer:
    """Takes numbers and images and keeps none; the writers below each override what they keep."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes numbers by name (Python, NumPy or JAX scalars)."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Takes images by name, each uint8 [H, W, 3] or [N, H, W, 3]."""

    def flush(self) -> None:
        """Makes all that was written so far safe."""

    def close(self) -> None:
        """Writes what is left and lets go of files; the writer cannot be used afterwards."""


class MultiWriter(Writer):
    """Hands everything to several writers in turn, clu's among them."""

    def __init__(self, writers: Sequence[Any]):
        self._writers = list(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonlWriter(Writer):
    """Writes a line of JSON a call, {"step": n, name: number, ...}; NaN and infinity become null.

    With `resume_step` the lines of later steps, left by an interrupted run, are dropped first. On
    object storage lines are sent every SEND_EVERY seconds and by `flush`, else at once.
    """

    def __init__(self, path: str | os.PathLike, *, resume_step: int | None = None):
        _mend(epath.Path(path), resume_step)
        self._file = _GrowingFile(path)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in _numbers(scalars).items()}
        self._file.write(json.dumps({'step': int(step), **finite}).encode() + b'\n')

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(Writer):
    """Writes an event file for TensorBoard into a folder, without TensorFlow.

    With `resume_step` TensorBoard is told to forget the later steps of the folder's older files.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None):
        # Not tensorboard's EventFileWriter: that one imports TensorFlow wherever it is installed.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer import record_writer

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = (
            f'{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBER_OF_WRITER)}'
        )
        file = _GrowingFile(epath.Path(folder) / f'events.out.tfevents.{name}')
        self._records = record_writer.RecordWriter(file)
        self._write(0, file_version='brain.Event:2')
        if resume_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(resume_step + 1, session_log=start)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        value = self._summary.Value
        values = [value(tag=k, simple_value=v) for k, v in _numbers(scalars).items()]
        self._write(step, summary=self._summary(value=values))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, array in images.items():
            many = np.ndim(array) == 4
            for i, image in enumerate(array if many else [array]):
                tag = f'{name}/{i}' if many else name
                value = self._summary.Value(tag=tag, image=self._summary.Image(**_png(image)))
                self._write(step, summary=self._summary(value=[value]))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=int(step), **content)
        self._records.write(event.SerializeToString())


class Progress(Writer):
    """Prints a line for people at each call: how far, loss, accuracy, speed, time left.

    Numbers without a 'loss' are taken for an evaluation's and all printed, a line for each group.
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
        """Keeps what happens inside (evaluation, checkpoints) out of the speed."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def rate(self, step: int) -> float:
        """Returns the examples a second since the last training line, pauses left out."""
        last_step, last_time = self._last
        seconds = self._clock() - last_time - self._paused
        return (step - last_step) * self._batch_size / max(seconds, 1e-9)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        numbers = _numbers(scalars)
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
            # The first line's time holds compilation: what is left is told from the next line on.
            self._first = (step, now)
        elif step > self._first[0]:
            first_step, first_time = self._first
            left = (now - first_time) / (step - first_step) * (self._total - step)
            parts.append(f'{duration(left)} left')
        self._last, self._paused = (step, now), 0.0
        return ['  '.join(parts)]


def default_writer(workdir: str | os.PathLike, *, resume_step: int = 0) -> MultiWriter:
    """Returns the writer of a run directory: metrics.jsonl and TensorBoard, later steps dropped."""
    return MultiWriter(
        [
            JsonlWriter(epath.Path(workdir) / 'metrics.jsonl', resume_step=resume_step),
            TensorBoardWriter(workdir, resume_step=resume_step),
        ]
    )


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the rows of a JsonlWriter's file, null as NaN; a last line cut short is left out."""
    lines = epath.Path(path).read_bytes().split(b'\n')
    rows = []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
        elif line.strip() and number < len(lines):
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with an integer "step", '
                f'found {line[:60].decode(errors="replace")!r}. Delete that line.'
            )
    return rows


def duration(seconds: float) -> str:
    """Returns a time span for people: '4.2 s', '2 min 13 s', '3 h 05 min', '2 d 04 h'."""
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


class _GrowingFile:
    """A file that grows at its end; object storage cannot append, so there it is sent whole."""

    def __init__(self, path: str | os.PathLike):
        self._path = epath.Path(path)
        self._remote = atomic.is_remote(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._remote:
            self._file = io.BytesIO()
            self._file.write(self._path.read_bytes() if self._path.exists() else b'')
        else:
            self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115
        self._sent = time.monotonic()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        if self._remote and time.monotonic() - self._sent > SEND_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._remote:
            self._path.write_bytes(self._file.getvalue())
            self._sent = time.monotonic()
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


def _mend(path: epath.Path, last_step: int | None) -> None:
    """Drops, in one atomic move, lines that are no rows and rows of steps after `last_step`."""
    if not path.exists():
        return
    text = path.read_bytes()
    rows = ((line, _row(line)) for line in text.split(b'\n'))
    kept = b''.join(
        line + b'\n'
        for line, row in rows
        if row is not None and (last_step is None or row['step'] <= last_step)
    )
    if kept != text:
        atomic.write(path, kept)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get('step'), int) else None


def _numbers(scalars: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in scalars.items():
        if np.size(value) != 1:
            raise ValueError(
                f'metric {name!r} has shape {np.shape(value)}, expected one number: '
                'reduce it before it is written.'
            )
        numbers[name] = np.asarray(value).item()
    return numbers


def _groups(numbers: Mapping[str, float]) -> list[str]:
    """Joins the numbers of one group, 'group/name', to one line: 'group: name 0.1  name 0.2'."""
    lines = {}
    for name, value in numbers.items():
        group, _, last = name.rpartition('/')
        lines.setdefault(group, []).append(
            f'{last} {value:,}' if isinstance(value, int) else f'{last} {value:#.4g}'
        )
    return [(f'{group}: ' if group else '') + '  '.join(words) for group, words in lines.items()]


def _png(image: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, 'PNG')
    height, width, channels = np.shape(image)
    return {
        'height': height,
        'width': width,
        'colorspace': channels,
        'encoded_image_string': buffer.getvalue(),
    }
