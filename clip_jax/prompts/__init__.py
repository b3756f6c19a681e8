"""Prompt templates and class names: the classes of a data set as texts, for zero-shot
classification.
"""

import importlib.resources
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax import lookup
from clip_jax.data.errors import DataNotFound
from clip_jax.prompts import by_class
from clip_jax.prompts.by_class import PLACE
from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import shown

_SETS = importlib.resources.files('clip_jax') / 'prompts' / 'templates'
_ENDINGS = ('.txt', '.json')

# A text in which {} stands for the class name, or a function of the class name.
Template = str | Callable[[str], str]
# One list for all classes, or for each class its own prompts.
Templates = Sequence[Template] | Mapping[str, Sequence[str]]
# A prompt set, a file, one template or several, or the prompts of each class.
Given = Template | Templates


def sets() -> list[str]:
    """Returns the names of the prompt sets in `prompts/templates`."""
    return sorted(file.name.removesuffix('.txt') for file in _SETS.iterdir())


def templates(source: Given, *, key: str = '') -> Templates:
    """Reads prompt templates, in each of which `{}` stands for the class name.

    `{c}`, the spelling of CLIP_benchmark, is replaced by `{}`.

    Args:
        source: the name of a prompt set in `prompts/templates`; the path of a text file with one
            template per line or of a JSON file (a path has a `/` or ends in `.txt` or `.json`); one
            template, a text with a `{}`; several templates; or the prompts of each class. A
            template may be a function of the class name, as those of OpenAI and open_clip are. JSON
            is a list of templates, or an object with the prompts of each class, or an object of
            several of these, as CLIP_benchmark has it.
        key: which entry of such a JSON object to use.

    Returns:
        The templates, or the prompts by class name.

    Raises:
        ValueError: there are no templates, or one lacks its `{}`.
    """
    if callable(source) or _is_template(source):
        return [_checked(source, 'prompts')]
    if isinstance(source, Mapping):
        if not all(map(_is_texts, source.values())):
            raise ValueError(
                f'prompts by class: expected a list of texts for each, found {source!r:.60}'
            )
        return _of_classes(source, 'prompts by class')
    if isinstance(source, str) and source.endswith('.json'):
        where, chosen = (
            f'prompts {source!r}, template',
            _choose(source, key, 'prompts', by_class.are_prompts),
        )
        if isinstance(chosen, Mapping):
            return _of_classes(chosen, source)
        lines = list(enumerate(chosen, start=1))
    elif isinstance(source, str):
        text = _read(source) if _is_path(source) else _read_set(source)
        where, lines = f'prompts {source!r}, line', _lines(text)
    else:
        where, lines = 'prompts, template', list(enumerate(source, start=1))
    if not lines:
        raise ValueError(
            f"prompts {source!r}: found no templates; one looks like 'a photo of a {{}}.'"
        )
    return [_checked(template, f'{where} {number}') for number, template in lines]


def class_names(path: str, *, key: str = '') -> list[str] | dict[str, str]:
    """Reads class names from a file, or from a text such as `cat,dog`.

    Args:
        path: a text file with one name per line, where blank lines and lines that start with `#`
            do not count; or a JSON file, a list or an object of several. Or a file of names by
            class: ImageNet's LOC_synset_mapping.txt, Keras' imagenet_class_index.json, a JSON
            object of names by folder or by number, or of prompts by name. If there is no such
            file, a text with commas is the names themselves.
        key: which entry of a JSON object of several lists to use.

    Returns:
        The names, in the order of the labels; or by the names of the folders, such as WordNet ids.
        Classes may have the same name.

    Raises:
        ValueError: the file is empty, is missing or is not of these.
    """
    if _is_list(path):
        what, lines = 'name', list(enumerate(map(str.strip, path.split(',')), start=1))
    elif str(path).endswith('.json'):
        chosen = _choose(path, key, 'class names', by_class.from_object)
        if isinstance(chosen, Mapping) and (found := by_class.from_object(chosen)):
            return found
        if isinstance(chosen, Mapping):
            raise ValueError(
                f'class names {str(path)!r}: found an object, expected a list of names'
            )
        what, lines = 'item', list(enumerate(map(str.strip, chosen), start=1))
    else:
        what, lines = 'line', _lines(_read(path))
        if found := by_class.from_lines([name for _, name in lines]):
            return found
    for number, name in lines:
        if not name:
            raise ValueError(f'class names {str(path)!r}: {what} {number} is empty.')
    if not lines:
        raise ValueError(f'class names {str(path)!r}: the file is empty; write one name per line.')
    return [name for _, name in lines]


def filled(name: str, templates: Templates) -> list[str]:
    """Returns the prompts of a class."""
    if isinstance(templates, Mapping):
        templates = templates[name]
    return [
        template(name) if callable(template) else template.replace('{}', name)
        for template in templates
    ]


def check_classes(names: Sequence[str], templates: Templates) -> None:
    """Raises ValueError if there are prompts by class, but not for every class."""
    missing = [name for name in names if isinstance(templates, Mapping) and name not in templates]
    if missing:
        raise ValueError(
            f'prompts: none for {len(missing)} of {len(names)} classes, such as {missing[0]!r}; '
            f'found {", ".join(map(repr, [*templates][:3]))} …'
        )


def class_embeddings(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Templates,
) -> np.ndarray:
    """Embeds classes: the mean of each class's prompt embeddings, normalized.

    Averaging embeddings, not predictions, is the prompt ensembling of CLIP (arXiv 2103.00020,
    section 3.1.4).

    Args:
        encode_text: texts -> unit-length embeddings, float32 [N, D].
        names: names of the classes.
        templates: templates for all classes, or prompts for each.

    Returns:
        A unit-length embedding per class, float32 [len(names), D].

    Raises:
        ValueError: `templates` lacks the prompts of a class.
    """
    check_classes(names, templates)
    prompts = [filled(name, templates) for name in names]
    embeddings = encode_text(list(itertools.chain(*prompts))).astype(np.float64)
    starts = np.cumsum([0, *map(len, prompts[:-1])])
    sums = np.add.reduceat(embeddings, starts, axis=0)
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def _checked(template: Any, what: str) -> Template:
    """Returns a template with `{}` for the class name; ValueError, which begins with `what`, if it
    is none.
    """
    if callable(template):
        if not isinstance(made := template('cat'), str):
            raise ValueError(f'{what}: the function returned {made!r:.60}; expected a text')
        return template
    if not isinstance(template, str):
        raise ValueError(f'{what}: {template!r:.60} is neither a text nor a function')
    template = template.replace('{c}', '{}')
    if '{}' not in template:
        raise ValueError(f'{what}: {shown(template)} lacks the {{}} for the class name.')
    return template


def _is_template(source: Any) -> bool:
    return isinstance(source, str) and not source.endswith(_ENDINGS) and bool(PLACE.search(source))


def _is_list(names: str) -> bool:
    return ',' in names and not names.endswith(_ENDINGS) and not epath.Path(names).is_file()


def _is_path(source: str) -> bool:
    return '/' in source or source.endswith(_ENDINGS)


def _read_set(name: str) -> str:
    lookup.check(name, sets(), what='prompts')
    return (_SETS / f'{name}.txt').read_text(encoding='utf-8')


def _read(path: str) -> str:
    file = epath.Path(path)
    if not file.is_file():
        raise DataNotFound(
            f'prompts: no such file: {str(path)!r}; expected a text or JSON file, or the texts '
            "themselves: 'cat,dog' for classes, 'a photo of a {}.' for a template"
        )
    try:
        return file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'prompts: {str(path)!r} is not UTF-8 text ({error})') from error


def _choose(
    path: str, key: str, what: str, is_whole: Callable[[Any], Any]
) -> list[str] | dict[str, Any]:
    """The list in a JSON file, the entry `key` of its object, or an object that `is_whole`, without
    entries to choose from.
    """
    found = foreign_json.parse(_read(path), f'{what} {str(path)!r}', object)
    if isinstance(found, Mapping):
        if not key and is_whole(found):
            return dict(found)
        if not key:
            some = ', '.join(map(repr, [*found][:8])) or 'nothing'
            raise ValueError(
                f'{what} {str(path)!r}: has several sets ({some}{", …" if len(found) > 8 else ""});'
                ' choose one with `key`.'
            )
        found = found[lookup.check(key, found, what=f'{what} {str(path)!r}: key')]
    lists = list(found.values()) if isinstance(found, Mapping) else [found]
    if not all(map(_is_texts, lists)):
        raise ValueError(f'{what} {str(path)!r}: expected a list of texts, found {found!r:.60}')
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _of_classes(prompts: Mapping[str, Sequence[str]], source: str) -> dict[str, list[str]]:
    for name, own in prompts.items():
        if not own:
            raise ValueError(f'prompts {source!r}: the class {name!r} has none')
    found = {name: [text.replace('{c}', '{}') for text in own] for name, own in prompts.items()}
    # zeroshot replaces underscores in the class names of data sets by spaces.
    return found | {name.replace('_', ' '): own for name, own in found.items()}


def _lines(text: str) -> list[tuple[int, str]]:
    """Returns (line number, content) of the lines that are neither blank nor a comment."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith('#')]
