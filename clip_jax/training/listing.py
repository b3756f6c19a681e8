"""The checkpoints of a run, with what is wrong with each."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from clip_jax import checkpoint
from clip_jax.runtime import checksums


class Entry(NamedTuple):
    """A step in a folder of checkpoints, or an incomplete or quarantined one."""

    path: epath.Path
    step: int | None  # None for an incomplete or quarantined one
    errors: list[str]  # [] if it is valid
    bytes: int
    written: float  # seconds since 1970


def entries(path: str | epath.Path, *, contents: str) -> Iterator[Entry]:
    """Lists and verifies checkpoints.

    Args:
        path: a run directory, its folder of checkpoints, or one checkpoint.
        contents: how checksums are verified, as for `checksums.verify`.

    Yields:
        Steps, newest first, then incomplete and quarantined ones.

    Raises:
        ValueError: if there are none.
    """
    path = checkpoint.absolute(path)
    if not path.exists():
        raise ValueError(f'{path}: no such file or folder; expected a run directory')
    if checkpoint.is_checkpoint(path):
        found = [path]
    else:
        folder = path if path.name == checkpoint.FOLDER else path / checkpoint.FOLDER
        others = (f'{checkpoint.UNSEALED}.*', checkpoint.DELETING, f'{checkpoint.QUARANTINED}.*')
        known = re.compile(rf'\d+({"|".join(others)})?')
        names = sorted(p.name for p in checkpoint.inside(folder) if known.fullmatch(p.name))
        names.sort(key=lambda name: -int(name) if name.isdigit() else 1)
        found = [folder / name for name in names]
    if not found:
        raise ValueError(
            f'{path}: no checkpoint found; expected a run directory with {checkpoint.FOLDER}/'
        )
    for one in found:
        try:
            entry = _entry(one, contents)
        except FileNotFoundError:
            if one.exists() and (one.name.isdigit() or one == path):
                raise
            continue  # a running training writes or deletes it
        if one.exists():
            yield entry


def _entry(path: epath.Path, contents: str) -> Entry:
    stat = checksums.stat(path / checksums.NAME if (path / checksums.NAME).exists() else path)
    return Entry(
        path=path,
        step=int(path.name) if path.name.isdigit() else None,
        errors=checksums.verify(path, contents=contents),
        bytes=checksums.size(path) if path.is_dir() else stat.bytes,
        written=stat.written,
    )
