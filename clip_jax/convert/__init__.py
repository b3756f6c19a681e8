"""One file = one foreign checkpoint layout, read and, where there is a `write`, written.

`sniff(path) -> bool` says whether a file or folder is of this layout, by its content.
`read(path) -> (card, variables)` returns variables as NumPy arrays, float32. `write(folder, card,
variables)` makes a folder that the layout's own programs load, and returns the table of names that
it applied. ValueError for what is not whole, not safe or not supported.
"""

import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.convert import _cards, _table
from clip_jax.convert._table import Row
from clip_jax.data.preprocess import Preprocess

_NUMBER = re.compile(r'(?<=block_)\d+|(?<=\.)\d+(?=\.)')  # of a block
EXPECTED = (
    "OpenAI's .pt; open_clip's open_clip_config.json beside its weights; transformers' config.json "
    "beside its weights (CLIP, SigLIP); big_vision's .npz (SigLIP)"
)


def layout_of(path: pathlib.Path) -> str | None:
    """Returns the layout of a file or folder, None if it is of none that is known."""
    for name in lookup.names('convert'):
        if lookup.module('convert', name).sniff(path):
            return name
    return None


def read(path: pathlib.Path, layout: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the complete card, and variables, of a checkpoint of any known layout."""
    layout = layout or layout_of(path)
    if layout is None:
        inside = (
            ', '.join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else 'a file'
        )
        raise ValueError(
            f'{path}: no checkpoint of a known layout (found {inside}); expected is {EXPECTED}'
        )
    card, variables = lookup.module('convert', layout).read(path)
    return {**card, 'preprocess': Preprocess.from_card(card['preprocess']).card}, variables


def check_layout(layout: str) -> str:
    """Returns the name of a layout that can be written; else a ValueError with those that can."""
    names = [n for n in lookup.names('convert') if hasattr(lookup.module('convert', n), 'write')]
    return lookup.check(layout, names, what='convert: layout to write')


def write(
    folder: pathlib.Path, layout: str, card: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """Writes a checkpoint in a layout into a new folder, and reads it back to compare.

    Returns a table of what was mapped, and what of the card the layout does not say as it is.
    ValueError if the layout cannot hold the model, or if what was read back is not what was
    written; the folder is then not there.
    """
    module = lookup.module('convert', check_layout(layout))
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    for encoder in (card['model']['image']['name'], card['model']['text']['name']):
        if '.' in encoder:
            raise ValueError(
                f'{layout} has no place for the encoder {encoder}; its checkpoint is loaded with '
                'clip_jax.load, from its run directory'
            )
    model, variables = _cards.learned_positions(card['model'], variables)
    card = {**card, 'model': model}
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it can be moved there whole.
    with tempfile.TemporaryDirectory(prefix=f'{folder.name}.partial-', dir=parent) as scratch:
        partial = pathlib.Path(scratch) / folder.name
        partial.mkdir()
        table = module.write(partial, card, variables)
        again, back = read(partial, layout)
        _cards.check_expressible(model, again['model'], layout)
        _check_equal(variables, back, layout)
        partial.rename(folder)
    return _described(table, variables), _changed(card, again)


def _check_equal(written: Mapping[str, Any], back: Mapping[str, Any], layout: str) -> None:
    ours, theirs = _table.flat(written), _table.flat(back)
    wrong = [n for n in ours if not np.array_equal(ours[n], theirs.get(n), equal_nan=True)]
    if wrong or set(ours) != set(theirs):
        raise ValueError(f'{layout}: read back, these parameters are others: {wrong[:8]}')


def _changed(card: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What a layout has no words for, besides the model."""
    before, after = card['preprocess'], again['preprocess']
    changed = [
        f'preprocess.{name} {before[name]!r} becomes {after[name]!r}'
        for name in before
        if before[name] != after[name]
    ]
    if card['tokenizer'] is None:
        changed.append('no tokenizer was written, since none is known')
    return changed


def _described(table: list[Row], variables: Mapping[str, Any]) -> str:
    """Which of our parameters became which of theirs, for people; alike ones together."""
    shapes = {name: np.shape(x) for name, x in _table.flat(variables).items()}
    groups: dict[tuple[str, str, str], int] = {}
    for row in table:
        for ours, theirs in _paired(row):
            names = [_NUMBER.sub('*', x) for x in (ours.partition('/')[2], theirs)]
            key = (*names, 'x'.join(map(str, shapes[ours])) or 'number')
            groups[key] = groups.get(key, 0) + 1
    lines = [('ours', 'theirs', 'shape', 'times')]
    lines += [(*key, str(times)) for key, times in groups.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _paired(row: Row) -> list[tuple[str, str]]:
    """Names of ours with those of theirs; one of a kind stands beside each of the other."""
    times = max(len(row.ours), len(row.theirs))
    ours, theirs = (x * times if len(x) == 1 else x for x in (row.ours, row.theirs))
    return list(zip(ours, theirs, strict=True))
