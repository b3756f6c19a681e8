"""Labeled data sets as features and targets: train, validation and test sets of one task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evals import _embed
from clip_jax.runtime.messages import first_few


@dataclasses.dataclass(frozen=True)
class Examples:
    """The labeled images of a data set.

    Attributes:
        features: float32 [N, D].
        targets: int [N], or bool [N, K] if an image may have several labels.
        indices: of the images in the data set, int [N].
        unlabeled: number of images without a label, which are left out.
    """

    features: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    unlabeled: int = 0

    def __len__(self) -> int:
        return len(self.features)

    def at(self, which: np.ndarray) -> 'Examples':
        """Returns some of the examples."""
        return Examples(self.features[which], self.targets[which], self.indices[which])

    def followed_by(self, others: 'Examples') -> 'Examples':
        """Returns these examples and others; `indices` are then meaningless."""
        return Examples(
            np.concatenate([self.features, others.features]),
            np.concatenate([self.targets, others.targets]),
            np.concatenate([self.indices, others.indices]),
            self.unlabeled + others.unlabeled,
        )

    def one_hot(self, classes: int) -> np.ndarray:
        """Returns the classes of each image, bool [N, classes]."""
        several = self.targets.ndim == 2
        return self.targets if several else self.targets[:, None] == np.arange(classes)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        names: of the classes.
        empty: classes that the data sets name, but have no image of.
        parts: 'train', 'test' and, optional, 'validation'.
    """

    names: list[str]
    empty: list[str]
    parts: dict[str, Examples]

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.parts['train'].targets.ndim == 2


def held_out(targets: np.ndarray, one_in: int) -> np.ndarray:
    """Chooses validation examples, one in `one_in` of each class, always the same.

    Of a class with two examples or more at least one is chosen. An image of several classes counts
    for the rarest.

    Args:
        targets: the classes of each example, bool [N, K].
        one_in: the inverse of the fraction.

    Returns:
        Which examples are chosen, bool [N].
    """
    rng = np.random.default_rng(0)
    chosen, free = np.zeros(len(targets), bool), np.ones(len(targets), bool)
    of_class = [targets[:, k] for k in np.argsort(targets.sum(axis=0), kind='stable')]
    for members in [*of_class, np.ones(len(targets), bool)]:
        places = rng.permutation(np.flatnonzero(free & members))
        count = round(len(places) / one_in)
        if len(places) > 1 and not chosen[members].any():
            count = max(1, count)
        chosen[places[:count]] = True
        free[places] = False
    return chosen


def classes_of(
    records: Sequence[Mapping[str, Any]], source: Source
) -> tuple[list[list[int]], bool]:
    """Returns the labels of each image, and whether an image may have several; ValueError for an
    image without a label.
    """
    if any('label' not in record and 'labels' not in record for record in records):
        raise ValueError(
            f'{source} has images without a label; expected a labeled data set. clip-jax classify '
            'writes predictions for images without labels'
        )
    several = any('labels' in record for record in records)
    labels = [record.get('labels', [record.get('label')]) for record in records]
    return [[int(k) for k in own if k >= 0] for own in labels], several


def several_at_first(*sources: Source) -> bool:
    """Returns whether images may have several labels, from the first image of each source; this is
    checked before anything is embedded. ValueError if one has no label.
    """
    several = [classes_of(_embed.first(source), source)[1] for source in sources]
    return all(several)


def read(encode_image: Callable, sources: Mapping[str, Source], features: str) -> Task:
    """Embeds the parts of a classification task, whose classes are those with a training image.

    Classes of two data sets are matched by name if both name them, otherwise by number.

    Args:
        encode_image: images -> features, float32 [N, D].
        sources: the data sets 'train', 'test' and, optional, 'validation'.
        features: 'embedding' or 'pre_projection'.

    Returns:
        The task.

    Raises:
        ValueError: labels do not fit the names, a class of another part has no training image, or
            there is only one class.
    """
    names = next((list(s.label_names) for s in sources.values() if s.label_names), [])
    places = {part: _places(source, names) for part, source in sources.items()}
    embedded, labels, several = {}, {}, {}
    for part, source in sources.items():
        embedded[part], records = _embed.records(encode_image, source, features=features)
        labels[part], several[part] = classes_of(records, source)
    if len({*several.values()}) > 1:
        one, many = sorted(several, key=lambda part: several[part])[:: len(several) - 1]
        raise ValueError(
            f'{sources[many]} has several labels per image, {sources[one]} one; expected the same'
        )
    if not any(labels['train']):
        raise ValueError(f'no image of {sources["train"]} has a label')
    if not names:
        names = [str(k) for k in range(1 + max(max(own, default=-1) for own in labels['train']))]
    for part, source in sources.items():
        labels[part] = _renumbered(labels[part], source, places[part], names)
    kept = _kept(labels, sources, names)
    empty = [name for k, name in enumerate(names) if k not in kept]
    names = [names[k] for k in kept]
    if len(names) < 2 and not several['train']:
        raise ValueError(
            f'{sources["train"]} has images of one class only, {names[0]!r}; expected two or more'
        )
    number = {k: i for i, k in enumerate(kept)}
    parts = {
        part: _examples(embedded[part], labels[part], number, several[part]) for part in sources
    }
    for part, source in sources.items():
        if not len(parts[part]):
            raise ValueError(f'no image of {source} has a label')
    if several['train'] and (everywhere := parts['train'].targets.all(axis=0)).any():
        raise ValueError(
            f'every image of {sources["train"]} has the class {names[everywhere.argmax()]!r}; '
            'expected images without it'
        )
    return Task(names, empty, parts)


def _places(source: Source, names: list[str]) -> dict[int, str | int]:
    """The index in `names` of each label of a source, or its name if it is not in there; {} if
    numbers are the same.
    """
    if not source.label_names or list(source.label_names) == names:
        return {}
    place = {name: k for k, name in enumerate(names)}
    return {k: place.get(name, name) for k, name in enumerate(source.label_names)}


def _renumbered(
    labels: list[list[int]], source: Source, places: dict[int, str | int], names: list[str]
) -> list[list[int]]:
    """The labels as indices into `names`; ValueError if one is not in there."""
    highest = max(max(own, default=-1) for own in labels)
    count = len(source.label_names) or len(names)
    if highest >= count:
        raise ValueError(
            f'labels of {source} go up to {highest}, but there are {count} classes: '
            f'{_few(source.label_names or names)}'
        )
    if not places:
        return labels
    unknown = {name for own in labels for k in own if isinstance(name := places[k], str)}
    if unknown:
        raise ValueError(
            f'{source} has images of classes that the training set does not name: '
            f'{_few(sorted(unknown))}; it names {_few(names)}'
        )
    return [[int(places[k]) for k in own] for own in labels]


def _kept(
    labels: Mapping[str, list[list[int]]], sources: Mapping[str, Source], names: list[str]
) -> list[int]:
    """The classes with a training image; ValueError if another part has images of others."""
    found = {part: {k for own in labels[part] for k in own} for part in labels}
    for part, source in sources.items():
        missing = [names[k] for k in sorted(found[part] - found['train'])]
        if missing:
            raise ValueError(
                f'{sources["train"]} has no image of {_few(missing)}, but {source} has; each class '
                'needs at least one training image'
            )
    return sorted(found['train'])


def _examples(
    features: np.ndarray, labels: list[list[int]], number: Mapping[int, int], several: bool
) -> Examples:
    if several:
        targets = np.zeros((len(features), len(number)), bool)
        for i, own in enumerate(labels):
            targets[i, [number[k] for k in own]] = True
        return Examples(features, targets, np.arange(len(features)))
    labeled = np.flatnonzero([len(own) for own in labels])
    targets = np.array([number[labels[i][0]] for i in labeled], int)
    return Examples(features[labeled], targets, labeled, len(features) - len(labeled))


def _few(names: Sequence[str]) -> str:
    return first_few([*map(repr, names)])
