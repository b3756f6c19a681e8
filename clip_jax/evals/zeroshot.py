"""Zero-shot classification: the class whose prompts lie nearest to the image (arXiv 2103.00020,
section 3.1).
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import prompts
from clip_jax.evals import _embed, _labeled, _scores, _similarity, _tables

EXAMPLES = 12


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Any,
    *,
    classes: str | Sequence[str] = 'all',
    templates: str | Sequence[str] = 'plain',
    key: str = '',
) -> dict[str, Any]:
    """Returns `top1` and `top5`, the shares of images whose class is nearest, or among the nearest
    five, and `mean_per_class`, the mean over classes of their own top1; of exactly two classes also
    `roc_auc`, where images are ranked by how much nearer the second is than the first.

    `classes`: 'all' names of the data set, with spaces for their underscores, those 'present' among
    its labels, a file of names in the order of the labels (text or JSON), or the names themselves.
    `templates`: see prompts.templates. `key` says which entry of a JSON file of several sets is
    meant. Images with the label -1 belong to no class and are not scored; `unlabeled` counts them.
    A class that ties with the right one counts as nearer; of classes with one name, which always
    tie, the first does. `equal_names` in the report are such names.

    Of a set with several 'labels' an image: `map_11_point` and `mean_average_precision` over
    classes, whose images are ranked by similarity.
    """
    _check_texts(classes=classes, templates=templates)
    _check_key(key, classes, templates)
    templates = prompts.templates(templates, key=key)
    names = _names(classes, key, data)
    # Before all images are read: what is wrong with names and texts is found at once.
    _check_two(names, data, several=_labeled.several_at_first(data))
    vectors = _class_vectors(encode_text, names, templates)
    rows, records = _embed.records(encode_image, data)
    rows = _similarity.on_grid(rows)
    labels, several = _labels(records, names, data)
    if isinstance(classes, str) and classes == 'present':
        present = sorted(set().union(*labels))
        names, vectors = [names[k] for k in present], vectors[present]
        place = dict(zip(present, range(len(present)), strict=True))
        labels = [[place[k] for k in own] for own in labels]
    _check_two(names, data, several=several)
    report = (_several if several else _single)(rows, vectors, labels, names)
    equal = [name for name, times in collections.Counter(names).items() if times > 1]
    return report | {'equal_names': equal}


def _single(
    rows: np.ndarray, vectors: np.ndarray, labels: list[list[int]], names: list[str]
) -> dict[str, Any]:
    """The report of a set whose images have one label each, or none."""
    scored = np.flatnonzero([len(own) for own in labels])
    right = np.array([labels[i][0] for i in scored])
    rank, guess, margin = _ranked(rows[scored], vectors, right, _later(names))
    hits, counts = _scores.per_class(guess, right, len(names))
    mistakes = _tables.most_confident(guess != right, margin)
    of_two = {}
    if len(names) == 2 and counts.all():
        of_two['roc_auc'] = _scores.roc_auc(_lead(rows[scored], vectors), right == 1)
    return {
        'top1': _scores.accuracy(guess, right),
        'top5': float(np.mean(rank <= 5)),
        'mean_per_class': _scores.mean_per_class(guess, right, len(names)),
        **of_two,
        'images': len(scored),
        'unlabeled': len(labels) - len(scored),
        'classes': len(names),
        'chance': 1 / len(names),
        'per_class': _tables.per_class(names, counts, hits / np.maximum(counts, 1)),
        'confusion': _tables.confusion(guess, right, names),
        'mistakes': _mistakes(scored[mistakes], guess[mistakes], rows, vectors, labels, names),
        'examples': _examples(scored, rows, vectors, labels, names),
    }


def _several(
    rows: np.ndarray, vectors: np.ndarray, labels: list[list[int]], names: list[str]
) -> dict[str, Any]:
    """The report of a set whose images have any number of labels."""
    similarity = _similarity.matrix(rows, vectors)
    targets = np.zeros(similarity.shape, bool)
    for i, own in enumerate(labels):
        targets[i, own] = True
    guess = similarity.argmax(axis=1)
    margin = similarity.max(axis=1) - np.where(targets, similarity, -np.inf).max(axis=1)
    labeled = targets.any(axis=1)
    mistakes = _tables.most_confident(labeled & (margin > 0), margin)
    precisions = _scores.average_precisions(similarity, targets)
    return {
        'map_11_point': _scores.map_11_point(similarity, targets),
        'mean_average_precision': float(np.nanmean(precisions)),
        'images': len(rows),
        'unlabeled': int(np.sum(~labeled)),
        'classes': len(names),
        # Of the classes whose precisions are averaged.
        'chance': float(targets[:, targets.any(axis=0)].mean()),
        'per_class': _tables.per_class(names, targets.sum(axis=0), precisions),
        'mistakes': _mistakes(mistakes, guess[mistakes], rows, vectors, labels, names),
        'examples': _examples(np.flatnonzero(labeled), rows, vectors, labels, names),
    }


def _ranked(
    rows: np.ndarray, vectors: np.ndarray, right: np.ndarray, later: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image the rank of its class (1 is best), the class it is taken for, and by how much
    that one is nearer than the right one; `later` are of `_later`.
    """
    rank, guess, margin = np.empty(len(rows), int), np.empty(len(rows), int), np.empty(len(rows))
    # Some images at a time: thousands of classes and any number of images fit.
    for start in range(0, len(rows), _embed.CHUNK):
        part = slice(start, start + _embed.CHUNK)
        similarity = _similarity.matrix(rows[part], vectors)
        at = np.arange(len(similarity)), right[part]
        own = similarity[at]
        rank[part] = (similarity >= own[:, None]).sum(axis=1) - later[right[part]]
        # What ties with the right class is taken for it.
        similarity[at] = np.where(rank[part] == 1, np.inf, -np.inf)
        guess[part] = similarity.argmax(axis=1)
        similarity[at] = own
        margin[part] = similarity[at[0], guess[part]] - own
    return rank, guess, margin


def _later(names: list[str]) -> np.ndarray:
    """How many classes after each have its name: int [C].

    They tie with it, and an argmax over classes, as others score, takes the first.
    """
    seen, later = collections.Counter(), np.zeros(len(names), int)
    for k in reversed(range(len(names))):
        later[k] = seen[names[k]]
        seen[names[k]] += 1
    return later


def _lead(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """By how much the second of two classes is nearer to each image than the first."""
    starts = range(0, len(rows), _embed.CHUNK)
    found = [_similarity.matrix(rows[i : i + _embed.CHUNK], vectors) for i in starts]
    return np.diff(np.concatenate(found))[:, 0]


def _class_vectors(
    encode_text: Callable, names: list[str], templates: list[str] | Mapping[str, list[str]]
) -> np.ndarray:
    """The classes' unit rows, one for all of a name; a bar shows how far their texts are
    embedded.
    """
    place = {name: k for k, name in enumerate(dict.fromkeys(names))}
    places, names = [place[name] for name in names], [*place]
    prompts.check_classes(names, templates)
    texts = sum(len(prompts.filled(name, templates)) for name in names)
    size = max(1, _embed.CHUNK * len(names) // texts)
    vectors = [
        prompts.class_vectors(encode_text, some, templates)
        for some in _embed.chunks(names, unit='class', size=size)
    ]
    return _similarity.on_grid(_embed.finite(np.concatenate(vectors), 'class texts'))[places]


def _check_texts(**options: Any) -> None:
    for option, value in options.items():
        many = isinstance(value, Sequence) and all(isinstance(text, str) for text in value)
        if not isinstance(value, str) and not many:
            raise ValueError(
                f'evals/zeroshot: {option} is {value!r}; expected a name, a file or a list of texts'
            )


def _check_key(key: Any, *sources: str | Sequence[str]) -> None:
    if not isinstance(key, str):
        raise ValueError(f'evals/zeroshot: key is {key!r}; expected a text')
    if key and not any(isinstance(s, str) and s.endswith('.json') for s in sources):
        raise ValueError(
            f'evals/zeroshot: key is {key!r}, but neither classes nor templates is a JSON file'
        )


def _names(classes: str | Sequence[str], key: str, data: Any) -> list[str]:
    """The class names, in the order of the labels."""
    stored = [name.replace('_', ' ') for name in data.label_names]
    if isinstance(classes, str) and classes in ('all', 'present'):
        if not stored:
            raise ValueError(
                f'evals/zeroshot: {data} does not name its classes; '
                'give a file with one name a line as `classes`'
            )
        return stored
    names = prompts.class_names(classes, key=key) if isinstance(classes, str) else [*classes]
    if not names:
        raise ValueError('evals/zeroshot: classes is an empty list; expected at least one name')
    if stored:
        _check_order(names, stored, data)
    return names


def _check_order(names: list[str], stored: list[str], data: Any) -> None:
    """ValueError if given names cannot be those of a set's classes, in its order."""
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
            f'label {k}, which is {stored[k]!r} there; give them in the order of the set, or leave '
            'out classes'
        )


def _check_two(names: list[str], data: Any, *, several: bool) -> None:
    if len({*names}) < 2 and not several:
        raise ValueError(
            f'evals/zeroshot: the classes of {data} have one name only, {names[0]!r}, with which '
            'every image would be right; expected two or more'
        )


def _labels(records: list[dict], names: list[str], data: Any) -> tuple[list[list[int]], bool]:
    """The classes of all images: places in `names`, [] for an image that belongs to none; and
    whether an image may have several.
    """
    labels, several = _labeled.classes_of(records, data)
    highest = max((max(own) for own in labels if own), default=-1)
    if highest >= len(names):
        raise ValueError(
            f'evals/zeroshot: labels of {data} go up to {highest}, '
            f'but there are {len(names)} class names'
        )
    if highest < 0:
        raise ValueError(f'evals/zeroshot: no image of {data} belongs to a class')
    return labels, several


def _mistakes(
    indices: np.ndarray,
    guesses: np.ndarray,
    rows: np.ndarray,
    vectors: np.ndarray,
    labels: list[list[int]],
    names: list[str],
) -> list[dict[str, Any]]:
    """Images that are taken for another class: with its cosine, and that of their nearest own."""
    found = []
    for i, guess in zip(indices.tolist(), guesses.tolist(), strict=True):
        (cosines,) = _similarity.matrix(rows[[i]], vectors)
        own = max(labels[i], key=lambda k: cosines[k])
        found.append(
            {
                'index': i,
                'label': names[own],
                'guess': names[guess],
                'score': round(float(cosines[guess]), 4),
                'score_of_label': round(float(cosines[own]), 4),
            }
        )
    return found


def _examples(
    scored: np.ndarray,
    rows: np.ndarray,
    vectors: np.ndarray,
    labels: list[list[int]],
    names: list[str],
) -> list[dict[str, Any]]:
    """A few images spread over the set, each with its five nearest classes and their cosines; of
    several labels the nearest.
    """
    examples = []
    for i in scored[np.linspace(0, len(scored) - 1, min(EXAMPLES, len(scored))).astype(int)]:
        (cosines,) = _similarity.matrix(rows[[i]], vectors)
        nearest = np.argsort(-cosines, kind='stable')[:5]
        top = [[names[k], round(float(cosines[k]), 4)] for k in nearest]
        own = max(labels[i], key=lambda k: cosines[k])
        examples.append({'index': int(i), 'label': names[own], 'top': top})
    return examples
