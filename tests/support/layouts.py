"""Small checkpoints in published layouts, and changes to their files."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from clip_jax import convert
from clip_jax.convert import _table
from support.small_models import made


def written(tmp_path, layout: str, name: str) -> pathlib.Path:
    """Returns a folder with a small model in a layout."""
    (tmp_path / 'x').mkdir()
    for file, content in exported(layout, name).items():
        (tmp_path / 'x' / file).write_bytes(content)
    return tmp_path / 'x'


@functools.cache
def exported(layout: str, name: str) -> dict[str, bytes]:
    """Exports a small model once; returns the contents of the files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / 'x'
        convert.write(folder, layout, *made(name))
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def equal(a, b) -> bool:
    return _table.flat(a).keys() == _table.flat(b).keys() and all(
        np.array_equal(x, _table.flat(b)[n]) for n, x in _table.flat(a).items()
    )


def edit(path: pathlib.Path, change) -> None:
    """Changes a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
