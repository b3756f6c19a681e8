"""The names of classes and the templates of their prompts, as options or as a data set has them."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from clip_jax import prompts
from clip_jax.data.sources import Source
from clip_jax.prompts.by_class import WORDNET_ID


def names(classes: str | Sequence[str], key: str, data: Source) -> list[str]:
    """Returns the class names, in the order of the labels.

    Args:
        classes: the option `classes` of zeroshot.
        key: which entry of a JSON file of several sets to use.
        data: the data set.

    Raises:
        ValueError: there are none, or they are not those of the data set's classes.
    """
    stored = list(getattr(data, 'label_texts', ())) or [
        name.replace('_', ' ') for name in data.label_names
    ]
    if isinstance(classes, str) and classes in ('all', 'present'):
        if not stored:
            raise ValueError(
                f'evals/zeroshot: {data} does not name its classes; '
                'give a file with one name per line, or the names, as `classes`'
            )
        _warn_of_wordnet_ids(stored, data)
        return stored
    names = prompts.class_names(classes, key=key) if isinstance(classes, str) else [*classes]
    if isinstance(names, dict):
        return _names_by_folder(names, data, classes)
    if not names:
        raise ValueError('evals/zeroshot: classes is an empty list; expected at least one name')
    if stored:
        _check_order(names, stored, data)
    return names


def _warn_of_wordnet_ids(names: list[str], data: Source) -> None:
    if all(map(WORDNET_ID.fullmatch, names)):
        logging.warning(
            'evals/zeroshot: the classes of %s are named by WordNet ids (%s), which say nothing to '
            'a model; give a file with their names as `classes`: LOC_synset_mapping.txt of '
            "ImageNet, Keras' imagenet_class_index.json, or a list in the order of the folders",
            *(data, names[0]),
        )


def _names_by_folder(names: dict[str, str], data: Source, path: Any) -> list[str]:
    """The names of the data set's classes, in its order, from those of all folders."""
    missing = [name for name in data.label_names if name not in names]
    if missing or not data.label_names:
        found = f'{missing[0]!r} is not among them' if missing else 'it does not name its classes'
        raise ValueError(
            f'evals/zeroshot: {path!r} gives names by folder ({next(iter(names))!r} …), which do '
            f'not fit {data}: {found}; give a list of names in the order of the labels'
        )
    return [names[name] for name in data.label_names]


def _check_order(names: list[str], stored: list[str], data: Source) -> None:
    """Raises ValueError if names are not those of the data set's classes, in its order."""
    if len(names) != len(stored):
        raise ValueError(
            f'evals/zeroshot: {data} has {len(stored)} classes ({stored[0]!r} …), and classes '
            f'gives {len(names)} names ({names[0]!r} …); expected one each, in the same order'
        )
    words = [name.replace('_', ' ') for name in names]
    if words != stored and sorted(words) == sorted(stored):
        k = next(k for k, name in enumerate(words) if name != stored[k])
        raise ValueError(
            f'evals/zeroshot: classes gives the names of {data} in another order: {names[k]!r} for '
            f'label {k}, which is {stored[k]!r}; use the order of the data set, or leave out '
            'classes'
        )


def templates(given: str | Sequence[str], data: Source) -> str | Sequence[str]:
    """Returns the option `templates` of zeroshot; for 'auto', those of the data set, or 'plain'."""
    return (getattr(data, 'templates', ()) or 'plain') if given == 'auto' else given
