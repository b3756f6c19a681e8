"""Zero-shot classification: the class whose prompts lie nearest to the image (arXiv 2103.00020,
section 3.1).
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import prompts
from clip_jax.evals import _embed

EXAMPLES = 12


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Any,
    *,
    classes: str | Sequence[str] = 'all',
    templates: str | Sequence[str] = 'plain',
) -> dict[str, Any]:
    """Returns `top1` and `top5`: shares of images whose class is nearest, or among the nearest
    five.

    `classes`: 'all' names of the data set, those 'present' among its labels, a text file with one
    name a line in the order of the labels, or the names themselves. Images with the label -1 belong
    to no class and are not scored; `unlabelled` counts them. A class that ties with the right one
    counts as nearer.
    """
    _check_texts(classes=classes, templates=templates)
    templates = prompts.templates(templates)
    names = _names(classes, data)
    rows, records = _embed.records(encode_image, data)
    labels = _labels(records, names, data)
    competing = (
        np.unique(labels[labels >= 0])
        if isinstance(classes, str) and classes == 'present'
        else np.arange(len(names))
    )
    names = [names[k] for k in competing]
    scored = np.flatnonzero(labels >= 0)
    right = np.searchsorted(competing, labels[scored])

    vectors = prompts.class_vectors(encode_text, names, templates)
    vectors, place = _embed.distinct(_embed.finite(vectors, 'class texts'))
    similarity = (rows[scored] @ vectors.T)[:, place]
    own = similarity[np.arange(len(right)), right]
    rank = (similarity >= own[:, None]).sum(axis=1)  # 1 is best; a tie counts against
    return {
        'top1': float(np.mean(rank <= 1)),
        'top5': float(np.mean(rank <= 5)),
        'images': len(scored),
        'unlabelled': int(np.sum(labels < 0)),
        'classes': len(names),
        'chance': 1 / len(names),
        'examples': _examples(similarity, right, scored, names),
    }


def _check_texts(**options: Any) -> None:
    for option, value in options.items():
        many = isinstance(value, Sequence) and all(isinstance(text, str) for text in value)
        if not isinstance(value, str) and not many:
            raise ValueError(
                f'evals/zeroshot: {option} is {value!r}; expected a name, a file or a list of texts'
            )


def _names(classes: str | Sequence[str], data: Any) -> list[str]:
    """The class names, in the order of the labels."""
    if isinstance(classes, str) and classes not in ('all', 'present'):
        return prompts.class_names(classes)
    names = list(data.label_names if isinstance(classes, str) else classes)
    if isinstance(classes, str) and not names:
        raise ValueError(
            f'evals/zeroshot: {data} does not name its classes; '
            'give a file with one name a line as `classes`'
        )
    name, times = collections.Counter(names).most_common(1)[0] if names else ('', 0)
    if times > 1:
        raise ValueError(
            f'evals/zeroshot: the class name {name!r} stands there more than once; '
            'each class needs a name of its own'
        )
    return names


def _labels(records: list[dict], names: list[str], data: Any) -> np.ndarray:
    """The labels of all images, each -1 or the place of its class in `names`."""
    if any('label' not in record for record in records):
        raise ValueError(
            f'evals/zeroshot: {data} has images without a label; expected a labelled set'
        )
    labels = np.array([record['label'] for record in records])
    if labels.max() >= len(names):
        raise ValueError(
            f'evals/zeroshot: labels of {data} go up to {labels.max()}, '
            f'but there are {len(names)} class names'
        )
    if labels.max() < 0:
        raise ValueError(f'evals/zeroshot: no image of {data} belongs to a single class')
    return labels


def _examples(
    similarity: np.ndarray, right: np.ndarray, scored: np.ndarray, names: list[str]
) -> list[dict]:
    """A few images spread over the set, each with its five nearest classes and their cosines."""
    examples = []
    for i in np.linspace(0, len(scored) - 1, min(EXAMPLES, len(scored))).astype(int):
        nearest = np.argsort(-similarity[i], kind='stable')[:5]
        top = [[names[k], round(float(similarity[i, k]), 4)] for k in nearest]
        examples.append({'index': int(scored[i]), 'label': names[right[i]], 'top': top})
    return examples
