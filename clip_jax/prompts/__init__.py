"""Prompt templates and class names: a label set as texts, for zero-shot classification."""

import dataclasses
import importlib.resources
import itertools
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax import lookup
from clip_jax.data.errors import DataNotFound

_SETS = importlib.resources.files('clip_jax') / 'prompts' / 'templates'
_ENDINGS = ('.txt', '.json')
REMEMBERED = 64  # lists of classes whose vectors are kept for each model

# One list for all classes, or for each class its own prompts.
Templates = Sequence[str] | Mapping[str, Sequence[str]]


def sets() -> list[str]:
    """Returns the names of the prompt sets in `prompts/templates`."""
    return sorted(file.name.removesuffix('.txt') for file in _SETS.iterdir())


def templates(source: str | Sequence[str], *, key: str = '') -> Templates:
    """Returns templates, in each of which `{}` stands where the class name goes.

    `source` is the name of a prompt set in `prompts/templates`, the path of a text file of one
    template a line or of a JSON file (a path has a `/` or ends in `.txt` or `.json`), or the
    templates themselves. JSON is a list of templates or, as of CLIP_benchmark, an object of several
    such lists, of which `key` names one; an object in place of a list has the prompts of each
    class, written out. `{c}` is another spelling of `{}`. ValueError if there are none or if one
    lacks its `{}`.
    """
    if isinstance(source, str) and source.endswith('.json'):
        where, chosen = f'prompts {source!r}, template', _choose(source, key, 'prompts')
        if isinstance(chosen, Mapping):
            return _of_classes(chosen, source)
        lines = list(enumerate(chosen, start=1))
    elif isinstance(source, str):
        text = _read(source) if _is_path(source) else _read_set(source)
        where, lines = f'prompts {source!r}, line', _lines(text)
    else:
        where, lines = 'prompts, template', list(enumerate(source, start=1))
    if not lines:
        raise ValueError(f"prompts {source!r}: no templates; one looks like 'a photo of a {{}}.'")
    lines = [(number, template.replace('{c}', '{}')) for number, template in lines]
    for number, template in lines:
        if '{}' not in template:
            raise ValueError(
                f'{where} {number}: {template!r} lacks the {{}} where the class name goes.'
            )
    return [template for _, template in lines]


def class_names(path: str, *, key: str = '') -> list[str]:
    """Returns the class names in a file, in the order of their labels: text, one a line, or JSON, a
    list or an object of several, of which `key` names one.

    Blank lines of text and lines that start with `#` do not count; classes may have the same name.
    ValueError for an empty or a missing file.
    """
    if str(path).endswith('.json'):
        chosen = _choose(path, key, 'class names')
        if isinstance(chosen, Mapping):
            raise ValueError(
                f'class names {str(path)!r}: found an object, expected a list of names'
            )
        what, lines = 'place', list(enumerate(map(str.strip, chosen), start=1))
    else:
        what, lines = 'line', _lines(_read(path))
    for number, name in lines:
        if not name:
            raise ValueError(f'class names {str(path)!r}: {what} {number} is empty.')
    if not lines:
        raise ValueError(f'class names {str(path)!r}: the file is empty; write one name a line.')
    return [name for _, name in lines]


def filled(name: str, templates: Templates) -> list[str]:
    """Returns the prompts of a class."""
    if isinstance(templates, Mapping):
        templates = templates[name]
    return [template.replace('{}', name) for template in templates]


def check_classes(names: Sequence[str], templates: Templates) -> None:
    """ValueError if templates are those of single classes, and not of all that are named."""
    missing = [name for name in names if isinstance(templates, Mapping) and name not in templates]
    if missing:
        raise ValueError(
            f'prompts: none for {len(missing)} of {len(names)} classes, first {missing[0]!r}; '
            f'there are some for {", ".join(map(repr, [*templates][:3]))} …'
        )


def class_vectors(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Templates,
) -> np.ndarray:
    """Returns a unit row for each class, [len(names), D]: the mean of its prompts' rows, scaled to
    length 1.

    Averaging embeddings, not predictions, is the ensembling of arXiv 2103.00020, section 3.1.4.
    What a model has embedded last is remembered as long as the model lives.
    """
    check_classes(names, templates)
    prompts = [filled(name, templates) for name in names]
    known = _memory(encode_text)
    key = tuple(map(tuple, prompts))
    if key in known:
        known[key] = known.pop(key)  # used last
    else:
        rows = encode_text(list(itertools.chain(*prompts))).astype(np.float64)
        starts = np.cumsum([0, *map(len, prompts[:-1])])
        sums = np.add.reduceat(rows, starts, axis=0)
        known[key] = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        if len(known) > REMEMBERED:
            del known[next(iter(known))]
    return known[key].copy()


_remembered: dict[int, dict[tuple, np.ndarray]] = {}


def _memory(encode_text: Callable) -> dict[tuple, np.ndarray]:
    """Class vectors of an encoder by prompts: kept where it is a method of a frozen dataclass such
    as `pretrained.Clip`, and gone with that. Of others nobody knows whether they stay the same.
    """
    owner = getattr(encode_text, '__self__', None)
    parameters = getattr(type(owner), '__dataclass_params__', None)
    if not (dataclasses.is_dataclass(owner) and parameters.frozen):
        return {}
    if id(owner) not in _remembered:
        _remembered[id(owner)] = {}
        weakref.finalize(owner, _remembered.pop, id(owner), None)
    return _remembered[id(owner)]


def _is_path(source: str) -> bool:
    return '/' in source or source.endswith(_ENDINGS)


def _read_set(name: str) -> str:
    lookup.check(name, sets(), what='prompts')
    return (_SETS / f'{name}.txt').read_text(encoding='utf-8')


def _read(path: str) -> str:
    file = epath.Path(path)
    if not file.is_file():
        raise DataNotFound(f'prompts: there is no file {str(path)!r}.')
    try:
        return file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'prompts: {str(path)!r} is no text in UTF-8 ({error})') from error


def _choose(path: str, key: str, what: str) -> list[str] | dict[str, list[str]]:
    """The list in a JSON file, or what `key` names in its object."""
    try:
        found = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'{what} {str(path)!r}: no JSON ({error})') from error
    if isinstance(found, Mapping):
        if not key:
            some = ', '.join(map(repr, [*found][:8])) or 'nothing'
            raise ValueError(
                f'{what} {str(path)!r}: has several sets ({some}{", …" if len(found) > 8 else ""});'
                ' say with `key` which one is meant.'
            )
        found = found[lookup.check(key, found, what=f'{what} {str(path)!r}: key')]
    lists = list(found.values()) if isinstance(found, Mapping) else [found]
    if not all(map(_is_texts, lists)):
        raise ValueError(f'{what} {str(path)!r}: expected a list of texts, found {found!r:.60}')
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _of_classes(prompts: Mapping[str, list[str]], source: str) -> dict[str, list[str]]:
    for name, own in prompts.items():
        if not own:
            raise ValueError(f'prompts {source!r}: there is none for the class {name!r}')
    found = {name: [text.replace('{c}', '{}') for text in own] for name, own in prompts.items()}
    # Class names from data sets have spaces for their underscores.
    return found | {name.replace('_', ' '): own for name, own in found.items()}


def _lines(text: str) -> list[tuple[int, str]]:
    """Returns (line number, content) of the lines that are neither blank nor a comment."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith('#')]
