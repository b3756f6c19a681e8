"""Zero-shot classification: the class whose prompts are nearest to the image (CLIP, arXiv
2103.00020, section 3.1).
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax import prompts
from clip_jax.data.sources import Source
from clip_jax.evals import (
    Logits,
    _calibration,
    _class_names,
    _embed,
    _groups,
    _intervals,
    _labeled,
    _paired,
    _scores,
    _similarity,
    _tables,
    logits_of,
    score,
)

EXAMPLES = 12
UNKNOWN = 'the factor of the similarities is not known, which makes probabilities of them'


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Source,
    *,
    classes: str | Sequence[str] = 'all',
    templates: str | Sequence[str] = 'auto',
    key: str = '',
    validation: Source | None = None,
) -> dict[str, Any]:
    """Classifies images by the nearest class embedding.

    A class that ties with the true one counts as nearer. Of classes with one name, which always
    tie, the first counts as the nearest; `info['equal_names']` lists such names. Images with the
    label -1 are not scored; `counts['unlabeled']` counts them.

    Args:
        encode_image: images -> unit-length embeddings, float32 [N, D].
        encode_text: texts -> unit-length embeddings, float32 [N, D].
        data: a labeled data set.
        classes: 'all' class names of the data set, with spaces for underscores, or as a set with
            prompts of its own writes them; those 'present' among its labels; a file of names in the
            order of the labels, or by WordNet id or folder (see prompts.class_names); or the names,
            as a list or as cat,dog.
        templates: 'auto', those of the data set if it has some, else the prompt set 'plain'; a
            prompt set, a file of templates, a template such as 'a photo of a {}.', or a list of
            them (see prompts.templates).
        key: which entry of a JSON file of several sets to use.
        validation: a labeled data set of the same classes, on which the temperature of the
            probabilities is fitted (see evals/_calibration.py).

    Returns:
        The report. Scores: `top1`, `top5`, `mean_per_class` (the mean over classes of their own
        top1), `macro_f1` (the mean over classes with images of the harmonic mean of precision and
        recall), and with two classes `roc_auc`, where images are ranked by the difference of the
        two similarities. If images have a group: `worst_group` and `worst_group_top5`, the lowest
        top1 and top5 of a group. Where the logits of the model are known: `ece` and `nll`, its
        calibration, and with a validation set `fitted/ece` and `fitted/nll`. If an image may have
        several labels, only `map_11_point` and `mean_average_precision`, where a class ranks images
        by similarity.

    Raises:
        ValueError: names, templates or labels do not fit each other, or a validation set is given
            and the logits of the model are not known.
    """
    _check_options(classes, templates, key)
    if getattr(data, 'evaluation', '') == 'retrieval':
        raise ValueError(
            f'evals/zeroshot: {data} is a retrieval set, of captions and no classes; use the '
            'evaluation retrieval'
        )
    filled = prompts.templates(_class_names.templates(templates, data), key=key)
    names = _class_names.names(classes, key, data)
    # Errors in names and texts are found before the images are read.
    several = _labeled.several_at_first(data)
    _check_two(names, data, several=several)
    _check_validation(validation, data, several=several)
    classifier = _class_embeddings(encode_text, names, filled)
    logits = logits_of(encode_text)
    if validation and not logits:
        raise ValueError(f'evals/zeroshot: validation: {UNKNOWN}; leave it out')
    images, records = _embed.records(encode_image, data)
    images = _similarity.on_grid(images)
    labels, several = _labels(records, names, data)
    _check_validation(validation, data, several=several)
    kept = np.arange(len(names))
    if isinstance(classes, str) and classes == 'present':
        kept = np.array(sorted(set().union(*labels)))
    own = [np.searchsorted(kept, some).tolist() for some in labels]
    shown, classifier = [names[k] for k in kept], classifier[kept]
    _check_two(shown, data, several=several)
    if several:
        report = _multi_label(images, classifier, own, shown)
    else:
        report, right = _single_label(images, classifier, own, shown, _groups.of(records))
        report['correct'] = {'top1': _paired.packed(right, [one for one in labels if one])}
        tests = [_with_label(images, own)]
        if validation:
            tests.append(_validation(encode_image, validation, names, kept))
        report = _with_calibration(report, right, classifier, logits, tests)
    equal = [name for name, times in collections.Counter(shown).items() if times > 1]
    return report | {'info': report['info'] | {'equal_names': equal}}


def _single_label(
    images: np.ndarray,
    classifier: np.ndarray,
    labels: list[list[int]],
    names: list[str],
    groups: np.ndarray | None,
) -> tuple[dict[str, Any], np.ndarray]:
    """The report of a data set whose images have one label or none, and which of those with a label
    are classified correctly.
    """
    scored = np.flatnonzero([len(own) for own in labels])
    right = np.array([labels[i][0] for i in scored])
    rank, guess, margin = _ranked(images[scored], classifier, right, _later(names))
    hits, counts = _scores.per_class(guess, right, len(names))
    mistakes = _tables.most_confident(guess != right, margin)
    scores = {
        'top1': _fraction(guess == right),
        'top5': _fraction(rank <= 5),
        'mean_per_class': score(
            _scores.mean_per_class(guess, right, len(names)),
            interval=_intervals.of_mean_per_class(hits, counts),
        ),
        'macro_f1': score(_scores.macro_f1(guess, right, len(names))),
    }
    if len(names) == 2 and counts.all():
        lead = _lead(images[scored], classifier)
        scores['roc_auc'] = score(_scores.roc_auc(lead, right == 1))
    unlabeled = len(labels) - len(scored)
    report = {
        'scores': scores,
        'counts': {'images': len(scored), 'unlabeled': unlabeled, 'classes': len(names)},
        'info': {'chance': 1 / len(names)},
        'per_class': _tables.per_class(names, counts, hits / np.maximum(counts, 1)),
        'confusion': _tables.confusion(guess, right, names),
        'mistakes': _mistakes(scored[mistakes], guess[mistakes], images, classifier, labels, names),
        'examples': _examples(scored, images, classifier, labels, names),
    }
    groups = groups if groups is None else groups[scored]
    report = _groups.added(report, groups, {'top1': guess == right, 'top5': rank <= 5})
    return report, guess == right


def _fraction(right: np.ndarray) -> dict[str, Any]:
    """The score that is the fraction of right images, bool [N]."""
    hits = int(np.sum(right))
    return score(hits / len(right), interval=_intervals.of_fraction(hits, len(right)))


def _with_label(images: np.ndarray, labels: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The images that have a label, and their labels, int [n]."""
    some = np.flatnonzero([len(own) for own in labels])
    return images[some], np.array([labels[i][0] for i in some], int)


def _validation(
    encode_image: Callable, source: Source, names: list[str], kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The images of the validation set with one of the classes `kept`, and their places in it."""
    images, records = _embed.records(encode_image, source)
    labels, several = _labels(records, names, source)
    _check_one_label(source, several=several)
    place = {k: i for i, k in enumerate(kept.tolist())}
    own = [[place[k] for k in some if k in place] for some in labels]
    if not any(own):
        raise ValueError(f'evals/zeroshot: no image of {source} has a class of the test set')
    return _with_label(_similarity.on_grid(images), own)


def _with_calibration(
    report: dict[str, Any],
    right: np.ndarray,
    classifier: np.ndarray,
    logits: Logits | None,
    tests: list[tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Adds the calibration to a report; `tests` are the images and labels of the test set and,
    optional, of the validation set.
    """
    if not logits:
        return report | {'info': report['info'] | {'calibration': f'not measured: {UNKNOWN}'}}
    test, *validation = [functools.partial(_chunks, classifier, logits, *some) for some in tests]
    found = _calibration.measured(
        test, right, sigmoid=logits.sigmoid, validation=validation[0] if validation else None
    )
    info = {'logit_scale': logits.scale}
    if validation:
        report['counts']['validation_images'] = len(tests[1][0])
        info['temperature'] = found['calibration']['fitted']['temperature']
    return {
        **report,
        'scores': report['scores'] | found['scores'],
        'info': report['info'] | info,
        'calibration': found['calibration'],
    }


def _chunks(
    classifier: np.ndarray, logits: Logits, images: np.ndarray, labels: np.ndarray
) -> Iterator[_calibration.Chunk]:
    """Yields the logits of some images, with their labels."""
    for start in range(0, len(images), _embed.CHUNK):
        part = slice(start, start + _embed.CHUNK)
        similarity = _similarity.matrix(images[part], classifier)
        yield logits.scale * similarity + (logits.bias or 0.0), labels[part]


def _multi_label(
    images: np.ndarray, classifier: np.ndarray, labels: list[list[int]], names: list[str]
) -> dict[str, Any]:
    """The report of a data set whose images have any number of labels."""
    similarity = _similarity.matrix(images, classifier)
    targets = np.zeros(similarity.shape, bool)
    for i, own in enumerate(labels):
        targets[i, own] = True
    guess = similarity.argmax(axis=1)
    margin = similarity.max(axis=1) - np.where(targets, similarity, -np.inf).max(axis=1)
    labeled = targets.any(axis=1)
    mistakes = _tables.most_confident(labeled & (margin > 0), margin)
    precisions = _scores.average_precisions(similarity, targets)
    return {
        'scores': {
            'map_11_point': score(_scores.map_11_point(similarity, targets)),
            'mean_average_precision': score(np.nanmean(precisions)),
        },
        'counts': {
            'images': len(images),
            'unlabeled': int(np.sum(~labeled)),
            'classes': len(names),
        },
        # Over the classes whose precisions are averaged.
        'info': {'chance': float(targets[:, targets.any(axis=0)].mean())},
        'per_class': _tables.per_class(names, targets.sum(axis=0), precisions),
        'mistakes': _mistakes(mistakes, guess[mistakes], images, classifier, labels, names),
        'examples': _examples(np.flatnonzero(labeled), images, classifier, labels, names),
    }


def _ranked(
    images: np.ndarray, classifier: np.ndarray, right: np.ndarray, later: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each image, the rank of its class (1 is best), the predicted class, and by how
    much that is more similar than the true one; `later` comes from `_later`.
    """
    count = len(images)
    rank, guess, margin = np.empty(count, int), np.empty(count, int), np.empty(count)
    # In chunks, so that thousands of classes and any number of images fit into memory.
    for start in range(0, count, _embed.CHUNK):
        part = slice(start, start + _embed.CHUNK)
        similarity = _similarity.matrix(images[part], classifier)
        at = np.arange(len(similarity)), right[part]
        own = similarity[at]
        rank[part] = (similarity >= own[:, None]).sum(axis=1) - later[right[part]]
        # A class that ties with the true one is predicted instead.
        similarity[at] = np.where(rank[part] == 1, np.inf, -np.inf)
        guess[part] = similarity.argmax(axis=1)
        similarity[at] = own
        margin[part] = similarity[at[0], guess[part]] - own
    return rank, guess, margin


def _later(names: list[str]) -> np.ndarray:
    """How many later classes have the same name, int [C].

    They tie, and the argmax over classes that other implementations use returns the first.
    """
    seen, later = collections.Counter(), np.zeros(len(names), int)
    for k in reversed(range(len(names))):
        later[k] = seen[names[k]]
        seen[names[k]] += 1
    return later


def _lead(images: np.ndarray, classifier: np.ndarray) -> np.ndarray:
    """By how much each image is more similar to the second of two classes than to the first."""
    starts = range(0, len(images), _embed.CHUNK)
    found = [_similarity.matrix(images[i : i + _embed.CHUNK], classifier) for i in starts]
    return np.diff(np.concatenate(found))[:, 0]


def _class_embeddings(
    encode_text: Callable, names: list[str], templates: prompts.Templates
) -> np.ndarray:
    """The unit-length embedding of each class; classes of one name share it."""
    place = {name: k for k, name in enumerate(dict.fromkeys(names))}
    places, names = [place[name] for name in names], [*place]
    prompts.check_classes(names, templates)
    texts = sum(len(prompts.filled(name, templates)) for name in names)
    size = max(1, _embed.CHUNK * len(names) // texts)
    found = [
        prompts.class_embeddings(encode_text, some, templates)
        for some in _embed.chunks(names, unit='class', size=size)
    ]
    return _similarity.on_grid(_embed.finite(np.concatenate(found), 'class texts'))[places]


def _check_options(classes: Any, templates: Any, key: Any) -> None:
    """Raises ValueError if an option has a wrong type, or if `key` has no use."""
    for option, value in ('classes', classes), ('templates', templates):
        many = isinstance(value, Sequence) and all(isinstance(text, str) for text in value)
        if not isinstance(value, str) and not many:
            raise ValueError(
                f'evals/zeroshot: {option} is {value!r}; expected a name, a file or a list of '
                'texts; numbers that are names are quoted: ["0", "1"]'
            )
    if not isinstance(key, str):
        raise ValueError(f'evals/zeroshot: key is {key!r}; expected a text')
    if key and not any(isinstance(x, str) and x.endswith('.json') for x in (classes, templates)):
        raise ValueError(
            f'evals/zeroshot: key is {key!r}, but neither classes nor templates is a JSON file'
        )


def _check_validation(validation: Source | None, data: Source, *, several: bool) -> None:
    """Raises ValueError if a temperature cannot be fitted on a validation set for a data set."""
    if not validation:
        return
    _check_one_label(data, several=several)
    _check_one_label(validation, several=_labeled.several_at_first(validation))
    theirs, ours = [*validation.label_names], [*data.label_names]
    if theirs != ours:
        differ = [pair for pair in itertools.zip_longest(theirs, ours) if len({*pair}) > 1]
        raise ValueError(
            f'evals/zeroshot: validation: {validation} has other classes than {data}: '
            f'{differ[0][0]!r} for {differ[0][1]!r}; expected the same in the same order'
        )


def _check_one_label(source: Source, *, several: bool) -> None:
    if several:
        raise ValueError(
            f'evals/zeroshot: validation: {source} has several labels per image, of which the '
            'calibration is not measured; leave it out'
        )


def _check_two(names: list[str], data: Source, *, several: bool) -> None:
    if len({*names}) < 2 and not several:
        raise ValueError(
            f'evals/zeroshot: all classes of {data} are named {names[0]!r}; expected two or more '
            'names'
        )


def _labels(records: list[dict], names: list[str], data: Source) -> tuple[list[list[int]], bool]:
    """Returns the classes of each image as indices into `names`, and whether an image may have
    several.
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
    images: np.ndarray,
    classifier: np.ndarray,
    labels: list[list[int]],
    names: list[str],
) -> list[dict[str, Any]]:
    """Misclassified images, with the cosines of the predicted and of the nearest true class."""
    found = []
    for i, guess in zip(indices.tolist(), guesses.tolist(), strict=True):
        (cosines,) = _similarity.matrix(images[[i]], classifier)
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
    images: np.ndarray,
    classifier: np.ndarray,
    labels: list[list[int]],
    names: list[str],
) -> list[dict[str, Any]]:
    """A few images spread over the data set, each with its five nearest classes and their cosines;
    the label is the nearest of the true ones.
    """
    examples = []
    for i in scored[np.linspace(0, len(scored) - 1, min(EXAMPLES, len(scored))).astype(int)]:
        (cosines,) = _similarity.matrix(images[[i]], classifier)
        nearest = np.argsort(-cosines, kind='stable')[:5]
        top = [[names[k], round(float(cosines[k]), 4)] for k in nearest]
        own = max(labels[i], key=lambda k: cosines[k])
        examples.append({'index': int(i), 'label': names[own], 'top': top})
    return examples
