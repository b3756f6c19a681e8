"""Few-shot linear probe: logistic regression on a few images per class (CLIP, arXiv 2103.00020,
section 3.1.3 and figure 6).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evals import _labeled, _sweep, score
from clip_jax.evals._labeled import Examples, Task
from clip_jax.evals._logistic import Fit, Regression
from clip_jax.evals._probe import METRICS, Probe, check_metric, check_options
from clip_jax.runtime.progress import Progress

SHOTS = (1, 2, 4, 8, 16)


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Source,
    *,
    train: Source,
    validation: Source | None = None,
    shots: int | Sequence[int] = SHOTS,
    seeds: int = 5,
    features: str = 'pre_projection',
    metric: str = 'accuracy',
    C: float | None = None,
    max_iterations: int = 1000,
) -> dict[str, Any]:
    """Fits linear probes on k training images of each class, for each k of `shots`.

    A seed always draws the same images; those of a smaller k are among those of a larger one.

    Args:
        encode_image: images -> features, float32 [N, D].
        encode_text: not used.
        data: the test set.
        train: the training set.
        validation: the set on which C is chosen for each draw, as linear_probe does.
        shots: numbers of training images per class.
        seeds: number of random draws of each size.
        features: as in linear_probe.
        metric: as in linear_probe.
        C: the inverse of the regularization strength, 1 by default; with a validation set, the
            best one by default.
        max_iterations: of L-BFGS, for each fit.

    Returns:
        The report. Scores: METRIC@k, the mean over draws; `shots` has the standard deviation and
        every draw.

    Raises:
        ValueError: a class has fewer training images than the largest of `shots`, or the data sets
            do not fit each other.
    """
    what = 'evals/fewshot'
    numbers = {'C': C, 'max_iterations': max_iterations, 'seeds': seeds}
    check_options(what, features=features, metric=metric, **numbers)
    shots = _checked(shots)
    sources = {'train': train, 'validation': validation, 'test': data}
    sources = {part: source for part, source in sources.items() if source is not None}
    _check_one_label(data, several=_labeled.several_at_first(*sources.values()))
    task = _labeled.read(encode_image, sources, features)
    _check_one_label(data, several=task.several)
    check_metric(metric, task, sources)
    _check_enough(task, shots[-1], train)

    def metric_on(fit: Fit, part: Examples) -> float:
        probe = Probe.of(fit, task.names, features=features)
        return METRICS[metric](probe.scores(part.features), part)

    swept = None
    if C is None and validation is not None:
        swept = functools.partial(metric_on, part=task.parts['validation'])
    scores, chosen = ({k: [] for k in shots} for _ in range(2))
    with Progress('probes', seeds * len(shots), unit='probes', log=False) as progress:
        for seed in range(seeds):
            places, rank = _few_of_each(task.parts['train'].targets, shots[-1], seed)
            few = task.parts['train'].at(places)
            # The same size for every k and seed, so that it is compiled once.
            regression = Regression(few.features, few.targets, len(task.names))
            for k in shots:
                fit_some = functools.partial(
                    regression.fit, among=rank < k, max_iterations=max_iterations
                )
                fit = _fit(fit_some, C, swept)
                scores[k].append(metric_on(fit, task.parts['test']))
                chosen[k].append(fit.C)
                progress.advance()
    means = {k: float(np.mean(own)) for k, own in scores.items()}
    return {
        'scores': {f'{metric}@{k}': score(mean) for k, mean in means.items()},
        'counts': {
            'images': len(task.parts['test']),
            'unlabeled': task.parts['test'].unlabeled,
            'classes': len(task.names),
            'seeds': seeds,
        },
        'info': {
            'features': features,
            'width': task.parts['train'].features.shape[1],
            'classes_without_images': task.empty,
        },
        'shots': [[k, means[k], float(np.std(own)), own] for k, own in scores.items()],
        'C_of_shots': [[k, own] for k, own in chosen.items()],
    }


def _fit(fit: Callable[..., Fit], C: float | None, score: Callable[[Fit], float] | None) -> Fit:
    """The fit at C, or with a score the best one."""
    if score is None:
        return fit(1.0 if C is None else C)
    return _sweep.best(_sweep.sweep(lambda C, start: fit(C, start=start), score))


def _few_of_each(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples of each class; returns their indices, and their ranks in the class."""
    rng = np.random.default_rng(seed)
    classes = range(labels.max() + 1)
    places = [rng.permutation(np.flatnonzero(labels == k))[:count] for k in classes]
    return np.concatenate(places), np.tile(np.arange(count), len(classes))


def _checked(shots: int | Sequence[int]) -> list[int]:
    """Returns the numbers of images per class, rising; ValueError if they are none."""
    several = [shots] if isinstance(shots, int) else shots
    right = isinstance(several, Sequence) and all(type(k) is int and k > 0 for k in several)
    if not right or not len(several):
        raise ValueError(
            f'evals/fewshot: shots is {shots!r}; expected integers above 0, such as {list(SHOTS)}'
        )
    return sorted({*several})


def _check_one_label(data: Source, *, several: bool) -> None:
    if several:
        raise ValueError(f'evals/fewshot: {data} has several labels per image; expected one')


def _check_enough(task: Task, most: int, train: Source) -> None:
    counts = np.bincount(task.parts['train'].targets, minlength=len(task.names))
    least = int(counts.argmin())
    if counts[least] < most:
        raise ValueError(
            f'evals/fewshot: {train} has {counts[least]} images of {task.names[least]!r}; expected '
            f'{most} of each class, or shots of at most {counts[least]}'
        )
