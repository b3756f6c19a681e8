"""metrics.jsonl: one line of JSON for each call of `write_scalars`."""

import io
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from clip_jax.metrics._writer import UPLOAD_EVERY, Writer, to_python
from clip_jax.runtime import atomic


class JsonlWriter(Writer):
    """Writes one line of JSON for each call, {"step": n, name: number, ...}.

    NaN and infinity become null. A line is in the file when the call returns; on object storage the
    file is uploaded every `upload_every` seconds and by `flush`.

    Args:
        path: the file, which is appended to.
        resume_step: lines of later steps, left by an interrupted run, are dropped; None drops
            nothing.
        upload_every: seconds between two uploads.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        resume_step: int | None = None,
        upload_every: float = UPLOAD_EVERY,
    ):
        _repair(epath.Path(path), resume_step)
        self._file = _GrowingFile(path, upload_every)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in to_python(scalars).items()}
        self._file.write(json.dumps({'step': int(step), **finite}).encode() + b'\n')

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of a JsonlWriter.

    Args:
        path: the file.

    Returns:
        One dict for each line, with NaN for null. A truncated last line is left out.

    Raises:
        ValueError: if another line is malformed.
    """
    lines = epath.Path(path).read_bytes().split(b'\n')
    found = []
    for number, line in enumerate(lines, 1):
        parsed = _parse(line)
        if parsed is not None:
            found.append({k: math.nan if v is None else v for k, v in parsed.items()})
        elif line.strip() and number < len(lines):
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with an integer "step", '
                f'found {line[:60].decode(errors="replace")!r}; delete that line'
            )
    return found


class _GrowingFile:
    """A file that is appended to; on object storage all of it is uploaded again."""

    def __init__(self, path: str | os.PathLike, upload_every: float):
        self._path, self._upload_every = epath.Path(path), upload_every
        self._remote = atomic.is_remote(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._remote:
            self._file = io.BytesIO()
            self._file.write(self._path.read_bytes() if self._path.exists() else b'')
        else:
            self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115
        self._uploaded = time.monotonic()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        if self._remote and time.monotonic() - self._uploaded > self._upload_every:
            self.flush()

    def flush(self) -> None:
        if isinstance(self._file, io.BytesIO):
            self._path.write_bytes(self._file.getvalue())
            self._uploaded = time.monotonic()
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


def _repair(path: epath.Path, last_step: int | None) -> None:
    """Drops malformed lines and those of steps after `last_step`, atomically."""
    if not path.exists():
        return
    text = path.read_bytes()
    lines = ((line, _parse(line)) for line in text.split(b'\n'))
    kept = b''.join(
        line + b'\n'
        for line, parsed in lines
        if parsed is not None and (last_step is None or parsed['step'] <= last_step)
    )
    if kept != text:
        atomic.write(path, kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The content of a line, None if it is malformed."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = parsed.get('step') if isinstance(parsed, dict) else None
    return parsed if type(step) is int and abs(step) < 2**63 else None
