"""Annotation files of data sets whose images are files: JSON, JSON lines, CSV and Parquet."""

import codecs
import csv
import io
import os
from typing import Any

from clip_jax import lookup
from clip_jax.data.sources import _files
from clip_jax.runtime import foreign_json

ROWS = ('.json', '.jsonl', '.csv')


def one_file(address: str, spec: str) -> str:
    """Returns the file that an address matches; ValueError if there are several."""
    path, *more = _files.matches(address, spec.partition(':')[0])
    if more:
        raise ValueError(f'{spec}: matches {1 + len(more)} files, first {path}; expected one')
    return path


def most(captions: int, spec: str) -> int | None:
    """Returns the option `captions`, how many of an image count, as the end of a slice."""
    if type(captions) is not int or captions < 0:
        raise ValueError(f'{spec}: captions is {captions!r}; expected a number, or 0 for all')
    return captions or None


def text(path: str) -> str:
    """Reads a file as UTF-8; other bytes become surrogates, which `_captions.encoded` undoes."""
    with _files.open_file(path) as file:
        return file.read().removeprefix(codecs.BOM_UTF8).decode('utf-8', 'surrogateescape')


def parse(path: str, schema: Any = dict) -> Any:
    """Reads a JSON file that fits a schema of `foreign_json`."""
    return foreign_json.parse(text(path), path, schema)


def rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads the rows of a file.

    Args:
        path: .json with a list of objects, or an object of objects by key; .jsonl with an object
            per line; or .csv with a header.

    Returns:
        Where each row is, and the row.

    Raises:
        ValueError: the file has another extension or layout, or no row.
    """
    ending = lookup.check(os.path.splitext(path)[1].lower(), ROWS, what=f'{path}: extension')
    found: list[tuple[str, Any]]
    if ending == '.json':
        content = parse(path, (dict, list))
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        found = [(f'{path}: {key}', row) for key, row in pairs]
    elif ending == '.jsonl':
        lines = enumerate(text(path).split('\n'), start=1)
        found = [
            (f'{path}: line {k}', foreign_json.parse(line, f'{path}: line {k}'))
            for k, line in lines
            if line.strip()
        ]
    else:
        reader = csv.DictReader(io.StringIO(text(path), newline=''))
        found = [(f'{path}: row {k}', row) for k, row in enumerate(reader, start=1)]
    for place, row in found:
        foreign_json.check(row, dict, place)
    if not found:
        raise ValueError(f'{path}: has no rows. Give a file that has at least one.')
    return found
