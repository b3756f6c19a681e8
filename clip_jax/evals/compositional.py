"""Choices between texts or images that differ in composition: SugarCrepe (arXiv 2306.14610), ARO
(arXiv 2210.01936), Winoground (arXiv 2204.03162), WinoGAViL (arXiv 2207.12576).
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import prompts
from clip_jax.data.sources import Question, Source
from clip_jax.evals import _embed, _intervals, _paired, _similarity, score
from clip_jax.runtime.messages import first_few

TEXTS, IMAGES, BOTH = 'text_score', 'image_score', 'group_score'
MANY = 10  # images of a question of WinoGAViL; DataComp averages those with so many


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Source,
    *,
    min_examples: int = 1,
    leave_out: str | Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the questions of a data set (see `clip_jax.data.sources.Question`).

    What ties with the right one counts as preferred to it; `counts['ties']` counts questions where
    something does. A wrong text that equals the right one is no choice and is left out;
    `counts['equal_texts']` counts these.

    Args:
        encode_image: images -> unit-length embeddings, float32 [N, D].
        encode_text: texts -> unit-length embeddings, float32 [N, D].
        data: a data set with `questions`.
        min_examples: smaller groups do not count in the mean of groups; ARO's attributes: 25.
        leave_out: groups that do not count in the mean, as names or a file with one per line.

    Returns:
        The report. Scores, where a question has one image: `mean_per_group` and `accuracy`, the
        fraction whose right text is the most similar to the image. Several images and texts
        (Winoground): `text_score`, each image prefers its text; `image_score`, each text prefers
        its image; `group_score`, both. One text (WinoGAViL): `jaccard`, the mean Jaccard index of
        the right images and as many of the nearest, and `jaccard_10_12`, that of the questions
        with 10 images or more, if there are any. `groups` has each group.

    Raises:
        ValueError: the data set has no questions, questions are of different kinds, or no group is
            left.
    """
    questions = getattr(data, 'questions', None)
    if not questions:
        raise ValueError(
            f'evals/compositional: {data} has no questions; expected data such as choices:FILES'
        )
    kind = _kind(questions, data)
    if kind is not _accuracy and (min_examples > 1 or leave_out):
        raise ValueError(
            'evals/compositional: min_examples and leave_out are for the mean of groups, which '
            'only questions with one image have; leave them out'
        )
    counted = _counted(questions, min_examples, leave_out)
    questions, equal = _without_equal(questions)
    images, _ = _embed.records(encode_image, data)
    images = _similarity.on_grid(images)
    captions = list(dict.fromkeys(text for question in questions for text in question.texts))
    texts = _similarity.on_grid(_embed.texts(encode_text, captions))
    place = {text: k for k, text in enumerate(captions)}
    similarities = [
        _similarity.matrix(images[list(q.images)], texts[[place[text] for text in q.texts]])
        for q in questions
    ]
    values = np.array(list(map(kind, similarities, questions)))
    chances = [_chance(kind, question) for question in questions]
    return {
        **_scores(kind, values, questions, counted),
        'counts': {
            'images': len(data),
            'texts': len(captions),
            'questions': len(questions),
            'equal_texts': equal,
            'ties': sum(map(_ties, similarities, questions)),
        },
        'info': {'chance': float(np.mean(chances))},
    }


def _kind(questions: Sequence[Question], data: Source) -> Callable:
    """What scores a question of the data set."""
    kinds = {(len(q.images) > 1, len(q.texts) > 1) for q in questions}
    if len(kinds) > 1:
        raise ValueError(
            f'evals/compositional: {data} has questions of different kinds; expected either one '
            'image, one text, or several of both in all of them'
        )
    ((several_images, several_texts),) = kinds
    if several_images and several_texts:
        return _both
    return _jaccard if several_images else _accuracy


def _accuracy(similarity: np.ndarray, question: Question) -> list[float]:
    return [_prefers(similarity, question)]


def _both(similarity: np.ndarray, question: Question) -> list[float]:
    """The text, image and group score of a question."""
    text, image = _prefers(similarity, question), _prefers(similarity.T, _turned(question))
    return [text, image, text and image]


def _turned(question: Question) -> Question:
    """The question of the transposed similarities."""
    return question._replace(matches=tuple((k, i) for i, k in question.matches))


def _prefers(similarity: np.ndarray, question: Question) -> bool:
    """Whether what belongs to a row is nearer to it than all else, in every row."""
    right, wrong = _bounds(similarity, question)
    return bool((right > wrong).all())


def _ties(similarity: np.ndarray, question: Question) -> bool:
    """Whether something right and something wrong that decide a question are equally near."""
    both = _bounds(similarity, question), _bounds(similarity.T, _turned(question))
    return any((right == wrong).any() for right, wrong in both)


def _bounds(similarity: np.ndarray, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """The lowest similarity of what belongs to each row, and the highest of all else."""
    right = np.zeros(similarity.shape, bool)
    right[tuple(np.transpose(question.matches))] = True
    lowest = np.where(right, similarity, np.inf).min(axis=1)
    return lowest, np.where(right, -np.inf, similarity).max(axis=1)


def _jaccard(similarity: np.ndarray, question: Question) -> list[float]:
    """The Jaccard index of the k right images and the k nearest, wrong ones first if they tie."""
    right = np.zeros(len(similarity), bool)
    right[[i for i, _ in question.matches]] = True
    nearest = np.lexsort((right, -similarity[:, 0]))[: right.sum()]
    hits = int(right[nearest].sum())
    return [_index(hits, int(right.sum()))]


def _index(hits: int, count: int) -> float:
    """The Jaccard index of two sets of `count` with `hits` in common."""
    return hits / (2 * count - hits)


def _chance(kind: Callable, question: Question) -> float:
    """The expected first score of a question if all orders of similarities are equally likely."""
    if kind is not _jaccard:
        return (1 / len(question.texts)) ** len(question.images)
    n, k = len(question.images), len(question.matches)
    ways = [math.comb(k, hits) * math.comb(n - k, k - hits) for hits in range(k + 1)]
    return sum(w * _index(hits, k) for hits, w in enumerate(ways)) / sum(ways)


def _without_equal(questions: Sequence[Question]) -> tuple[list[Question], int]:
    """Questions of one image without wrong texts that equal a right one, and the number of these.

    Shuffled words may be in the same order as before.
    """
    kept, count = [], 0
    for question in questions:
        matched = {k for _, k in question.matches}
        right = {question.texts[k] for k in matched}
        equal = {k for k, text in enumerate(question.texts) if k not in matched and text in right}
        if equal:
            count += len(equal)
            left = [k for k in range(len(question.texts)) if k not in equal]
            question = question._replace(
                texts=tuple(question.texts[k] for k in left),
                matches=tuple((i, left.index(k)) for i, k in question.matches),
            )
        kept.append(question)
    return kept, count


def _counted(
    questions: Sequence[Question], min_examples: int, leave_out: str | Sequence[str]
) -> list[str]:
    """The groups that count in the mean of groups."""
    sizes = collections.Counter(question.group for question in questions)
    out = leave_out
    if isinstance(leave_out, str):
        alone = leave_out in sizes or not leave_out
        out = [leave_out] if alone else prompts.class_names(leave_out)
    if any(out) and not any(name in sizes for name in out):
        raise ValueError(
            f'evals/compositional: leave_out: {first_few([*out])} are no groups. There are: '
            f'{first_few([*sizes])}'
        )
    # Published lists name groups that the data have not.
    found = [name for name, size in sizes.items() if size >= min_examples and name not in out]
    if not found:
        raise ValueError(
            f'evals/compositional: none of {len(sizes)} groups is left; the largest has '
            f'{max(sizes.values())} examples. Use a smaller min_examples, or leave out less'
        )
    return found


def _scores(
    kind: Callable, values: np.ndarray, questions: Sequence[Question], counted: Sequence[str]
) -> dict[str, Any]:
    """The scores, and a table of groups for each."""
    own = np.array([question.group for question in questions])
    names = {_both: [TEXTS, IMAGES, BOTH], _jaccard: ['jaccard']}.get(kind, ['accuracy'])
    groups = list(dict.fromkeys(own.tolist()))
    tables = {
        name: [_row(group, values[own == group, k]) for group in groups]
        for k, name in enumerate(names)
    }
    scores = {
        name: score(values[:, k].mean(), interval=_intervals.of_mean(values[:, k]))
        for k, name in enumerate(names)
    }
    many = values[[len(question.images) >= MANY for question in questions], 0]
    if kind is _jaccard and len(many):
        scores['jaccard_10_12'] = score(many.mean(), interval=_intervals.of_mean(many))
    if kind is _accuracy:
        per_group = [values[own == group, 0] for group in counted]
        right = np.array([int(some.sum()) for some in per_group])
        interval = _intervals.of_mean_per_class(right, np.array(list(map(len, per_group))))
        mean = np.mean([some.mean() for some in per_group])
        scores = {'mean_per_group': score(mean, interval=interval), **scores}
    found = {'scores': scores, 'groups': {name.replace('_', ' '): tables[name] for name in names}}
    if kind is not _jaccard:
        truth = [[*question.texts] for question in questions]
        correct = {name: _paired.packed(values[:, k], truth) for k, name in enumerate(names)}
        found['correct'] = correct
    return found


def _row(group: str, values: np.ndarray) -> list[Any]:
    """The row of a group: its examples, their mean and, if it has one, its interval."""
    return [group, len(values), float(values.mean()), *(_intervals.of_mean(values) or ())]
