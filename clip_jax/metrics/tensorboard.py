"""TensorBoard: an event file in the run directory."""

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from clip_jax.metrics._writer import UPLOAD_EVERY, Writer, split_images, to_python
from clip_jax.runtime import atomic

_NUMBERS = itertools.count()  # files of one process and second need different names


def create(workdir: str | os.PathLike, *, resume_step: int, config: Mapping[str, Any]) -> Writer:
    """Opens the writer of a run directory; see metrics/__init__."""
    del config
    return TensorBoardWriter(workdir, resume_step=resume_step)


class TensorBoardWriter(Writer):
    """Writes an event file with tensorboardX, without TensorFlow.

    Args:
        folder: where the event file is created; on object storage it is uploaded every
            UPLOAD_EVERY seconds and by `flush`.
        resume_step: TensorBoard hides later steps of the folder's older event files; None hides
            nothing.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None):
        events, self._summary = _tensorboardx()
        self._event = events.event_pb2.Event
        self._folder, self._temporary = epath.Path(folder), None
        local = Path(folder)
        if atomic.is_remote(folder):
            self._temporary = local = Path(tempfile.mkdtemp(prefix='clip_jax-tensorboard-'))
        local.mkdir(parents=True, exist_ok=True)
        suffix = f'.{os.getpid()}.{next(_NUMBERS):06}'
        self._file = events.EventsWriter(str(local / 'events'), suffix)
        self._uploaded = time.monotonic()
        if resume_step is not None:
            start = events.event_pb2.SessionLog(status=events.event_pb2.SessionLog.START)
            self._write(resume_step + 1, session_log=start)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        value = self._summary.Summary.Value
        values = [value(tag=k, simple_value=v) for k, v in to_python(scalars).items()]
        self._write(step, summary=self._summary.Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in split_images(images).items():
            image = self._summary.image(name, np.asarray(image), dataformats='HWC')
            self._write(step, summary=image)

    def flush(self) -> None:
        self._file.flush()
        if self._temporary:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._temporary.iterdir():
                (self._folder / path.name).write_bytes(path.read_bytes())
            self._uploaded = time.monotonic()

    def close(self) -> None:
        self.flush()
        self._file.close()
        if self._temporary:
            shutil.rmtree(self._temporary)

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=int(step), **content))
        if self._temporary and time.monotonic() - self._uploaded > UPLOAD_EVERY:
            self.flush()


def _tensorboardx() -> tuple[ModuleType, ModuleType]:
    """Imports tensorboardX without PyTorch, which it imports wherever that is installed."""
    hide = 'torch' not in sys.modules
    if hide:
        sys.modules['torch'] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        from tensorboardX import event_file_writer, summary
    finally:
        if hide:
            del sys.modules['torch']
    return event_file_writer, summary
