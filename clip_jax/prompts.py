"""Prompt templates and class names: a label set as texts, for zero-shot classification."""

import importlib.resources
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from clip_jax import lookup

_SETS = importlib.resources.files('clip_jax') / 'assets' / 'prompts'


def templates(source: str | Sequence[str]) -> list[str]:
    """Returns templates, in each of which `{}` stands where the class name goes.

    `source` is the name of a prompt set in `assets/prompts`, a path to a text file of one template
    a line (a path has a `/` or ends in `.txt`), or the templates themselves. ValueError if there
    are none or if one lacks its `{}`.
    """
    if isinstance(source, str):
        text = _read(source) if _is_path(source) else _read_set(source)
        where, lines = f'prompts {source!r}, line', _lines(text)
    else:
        where, lines = 'prompts, template', list(enumerate(source, start=1))
    if not lines:
        raise ValueError(f"prompts {source!r}: no templates; one looks like 'a photo of a {{}}.'")
    for number, template in lines:
        if '{}' not in template:
            raise ValueError(
                f'{where} {number}: {template!r} lacks the {{}} where the class name goes.'
            )
    return [template for _, template in lines]


def class_names(path: str) -> list[str]:
    """Returns the class names in a text file, one a line, in the order of their labels.

    Blank lines and lines that start with `#` do not count. ValueError for an empty or a missing
    file and for a name that stands there twice.
    """
    first: dict[str, int] = {}
    for number, name in _lines(_read(path)):
        if name in first:
            raise ValueError(
                f'class names {str(path)!r}: {name!r} stands in line {first[name]} and in line '
                f'{number}; each class needs a name of its own.'
            )
        first[name] = number
    if not first:
        raise ValueError(f'class names {str(path)!r}: the file is empty; write one name a line.')
    return list(first)


def class_vectors(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Sequence[str],
) -> np.ndarray:
    """Returns a unit row for each class, [len(names), D]: the mean of its prompts' rows, scaled to
    length 1.

    Averaging embeddings, not predictions, is the ensembling of arXiv 2103.00020, section 3.1.4.
    """
    filled = [template.replace('{}', name) for name in names for template in templates]
    rows = encode_text(filled).reshape(len(names), len(templates), -1).mean(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _is_path(source: str) -> bool:
    return '/' in source or source.endswith('.txt')


def _read_set(name: str) -> str:
    names = [file.name.removesuffix('.txt') for file in _SETS.iterdir()]
    lookup.check(name, names, what='prompts')
    return (_SETS / f'{name}.txt').read_text(encoding='utf-8')


def _read(path: str) -> str:
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f'prompts: there is no file {str(path)!r}.')
    return file.read_bytes().decode('utf-8-sig')


def _lines(text: str) -> list[tuple[int, str]]:
    """Returns (line number, content) of the lines that are neither blank nor a comment."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith('#')]
