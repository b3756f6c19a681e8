"""Published checkpoint layouts, one a file: import and, where there is a `write`, export.

A layout module has:

* `sniff(path) -> bool`: whether a file or folder has this layout, detected by content.
* `read(path) -> (card, variables)`: the model card, and float32 NumPy arrays.
* `write(folder, card, variables)`, optional: fills a new folder with a checkpoint that the layout's
  own programs load, and returns the parameter name table that it applied.
* `missing(card) -> str`, optional: the tokenizer files that a checkpoint without them lacks, if
  they are published elsewhere.

All raise a ValueError for checkpoints that are incomplete, unsafe or not supported.
"""

import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from absl import logging

from clip_jax import lookup
from clip_jax.convert import _cards, _files, _table
from clip_jax.convert._table import Row
from clip_jax.data.preprocess import PILLOW, Preprocess
from clip_jax.runtime import atomic

# The start of a name in the weights, and the config that must lie next to them.
_CONFIGS = (
    ('visual.', 'open_clip_config.json', 'open_clip'),
    ('vision_model.', 'config.json', 'transformers'),
    ('vision_encoder.', 'config.json', 'transformers'),
)
_WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth')
_NUMBER = re.compile(r'(?<=block_)\d+|(?<=\.)\d+(?=\.)')  # the index of a block
BARE = 'bare:'  # before the name of an architecture
EXPECTED = (
    "OpenAI's .pt; open_clip's open_clip_config.json with its weights; transformers' config.json "
    "with its weights (CLIP, MetaCLIP 2, SigLIP, TIPS v2); big_vision's .npz (SigLIP); a folder of "
    'Orbax with the parameters of big_vision or OpenVision'
)


def layout_of(path: pathlib.Path) -> str | None:
    """Returns the name of a checkpoint's layout, None if it is unknown.

    Raises:
        ValueError: a file is damaged, or only a pointer to the file.
    """
    if path.is_file():
        _files.check_pointer(path)
    for name in lookup.names('convert'):
        if lookup.module('convert', name).sniff(path):
            return name
    return None


def read(path: pathlib.Path, layout: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a published checkpoint.

    Args:
        path: a file or folder.
        layout: the name of the layout, by default it is detected; or BARE and the name of an
            architecture, for weights without settings.

    Returns:
        The complete model card, and the variables, float32 NumPy arrays.

    Raises:
        ValueError: the layout is unknown, or the checkpoint is incomplete, unsafe or not supported.
    """
    layout = layout or layout_of(path)
    if layout is None:
        raise ValueError(
            f'{path}: no checkpoint of a known layout; {hint(path) or f"expected {EXPECTED}"}'
        )
    card, variables = _read(path, layout)
    missing = getattr(_module(layout), 'missing', None)
    if missing and card['tokenizer'] is None and card['model']['text']:
        logging.warning(
            '%s: no tokenizer beside it, so that it embeds images and tokens, but no texts; to '
            'embed texts, copy %s into %s and load again',
            path,
            missing(card),
            _files.folder_of(path),
        )
    return card, variables


def _module(layout: str) -> ModuleType:
    return lookup.module('convert', 'bare' if layout.startswith(BARE) else layout)


def _read(path: pathlib.Path, layout: str) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [layout.removeprefix(BARE)] if layout.startswith(BARE) else []
    card, variables = _module(layout).read(path, *names)
    if card['preprocess'] is not None:  # a text tower alone has none
        card['preprocess'] = Preprocess.from_card(card['preprocess']).card
    return card, variables


def hint(path: pathlib.Path) -> str:
    """Says what weights of no known layout lack.

    Args:
        path: a file, or a folder with weights.

    Returns:
        What to do; '' if there are no weights, or those of another model.

    Raises:
        ValueError: the weights are damaged.
    """
    if path.is_dir() and (found := lookup.module('convert', 'orbax').hint(path)):
        return found
    files = [path] if path.is_file() else [*sorted(path.iterdir()), path]
    path = next((p for p in files if p.suffix in _WEIGHTS and p.is_file()), files[0])
    try:
        names = _files.arrays(path) if path.is_file() else []
    except ValueError:
        if path.suffix == '.safetensors':
            raise
        return ''
    for start, config, library in _CONFIGS:
        if any(name.startswith(start) for name in names):
            if (path.parent / config).is_file():
                return f'{config} is there; give the path of the weights, {path}'
            return (
                f'{path.name} holds weights with the names of {library}, which need its {config}: '
                'put it into the same folder'
            )
    return ''


def check_layout(layout: str) -> str:
    """Returns a layout's name; ValueError, with the choices, if it cannot be exported to."""
    names = [n for n in lookup.names('convert') if hasattr(lookup.module('convert', n), 'write')]
    return lookup.check(layout, names, what='convert: layout to write')


def write(
    folder: pathlib.Path, layout: str, card: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """Exports a checkpoint to a new folder, reads it back and compares every parameter.

    Args:
        folder: the folder to create; it appears only when it is complete and verified.
        layout: the name of the layout.
        card: the model card.
        variables: the variables.

    Returns:
        The table of parameter names, ours and theirs, as text; and the settings of the card that
        the layout cannot express, one line each.

    Raises:
        ValueError: the folder exists, the layout cannot express the model, or the parameters read
            back differ.
    """
    module = lookup.module('convert', check_layout(layout))
    if folder.exists():
        raise ValueError(f'{folder}: exists; name a new folder')
    towers = [card['model'][tower] for tower in ('image', 'text')]
    if None in towers and layout != 'huggingface':
        raise ValueError(
            f'the layout {layout} cannot hold this model, which has one tower; expected huggingface'
        )
    for tower in filter(None, towers):
        if '.' in tower['name']:
            raise ValueError(
                f'{layout} cannot hold the encoder {tower["name"]}; load the model with '
                'clip_jax.load, from its run directory'
            )
    model, variables = _cards.learned_positions(card['model'], variables)
    card = {**card, 'model': model}
    with atomic.new_folder(folder.absolute()) as partial:
        table = module.write(partial, card, variables)
        again, back = _read(partial, layout)
        _cards.check_expressible(model, again['model'], layout)
        _check_equal(variables, back, layout)
    return _described(table, variables), _changed(card, again)


def _check_equal(written: Mapping[str, Any], back: Mapping[str, Any], layout: str) -> None:
    ours, theirs = _table.flat(written), _table.flat(back)
    # pyrefly: ignore[bad-argument-type]  # None, which is no array, differs from all
    wrong = [n for n in ours if not np.array_equal(ours[n], theirs.get(n), equal_nan=True)]
    if wrong or set(ours) != set(theirs):
        raise ValueError(f'{layout}: these parameters differ when read back: {wrong[:8]}')


def _changed(card: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Returns the settings of preprocessing and tokenizer that a layout cannot express."""
    before, after = card['preprocess'] or {}, again['preprocess'] or {}
    after = {'resampling': PILLOW, **after}
    changed = [
        f'preprocess.{name} {before[name]!r} becomes {after[name]!r}'
        for name in before
        if before[name] != after[name]
    ]
    if card['tokenizer'] is None and card['model']['text']:
        changed.append('no tokenizer was written, since the checkpoint has none')
    return changed


def _described(table: list[Row], variables: Mapping[str, Any]) -> str:
    """Returns the table of parameter names as text, with numbered blocks merged into one line."""
    shapes = {name: np.shape(x) for name, x in _table.flat(variables).items()}
    groups: dict[tuple[str, ...], int] = {}
    for row in table:
        for ours, theirs in _paired(row):
            names = [_NUMBER.sub('*', x) for x in (ours.partition('/')[2], theirs)]
            key = (*names, 'x'.join(map(str, shapes[ours])) or 'number')
            groups[key] = groups.get(key, 0) + 1
    lines: list[tuple[str, ...]] = [('ours', 'theirs', 'shape', 'times')]
    lines += [(*key, str(times)) for key, times in groups.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _paired(row: Row) -> list[tuple[str, str]]:
    """Returns pairs of our and their names; a single name is paired with each of the others."""
    times = max(len(row.ours), len(row.theirs))
    ours, theirs = (x * times if len(x) == 1 else x for x in (row.ours, row.theirs))
    return list(zip(ours, theirs, strict=True))
