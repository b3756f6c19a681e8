"""Few-shot linear probe: logistic regression on the features of a few images a class (arXiv
2103.00020, section 3.1.3 and figure 6).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.evals import _labeled, _sweep
from clip_jax.evals._labeled import Examples, Task
from clip_jax.evals._logistic import Fit, Regression
from clip_jax.evals._probe import METRICS, Probe, check_metric, check_options
from clip_jax.runtime.progress import Progress

SHOTS = (1, 2, 4, 8, 16)


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Any,
    *,
    train: Any,
    validation: Any = None,
    shots: int | Sequence[int] = SHOTS,
    seeds: int = 5,
    features: str = 'pre_projection',
    metric: str = 'accuracy',
    C: float | None = None,
    max_iterations: int = 1000,
) -> dict[str, Any]:
    """Returns METRIC@k for each k of `shots`: the `metric` on the test set `data` of logistic
    regression on k images of each class of `train`, the mean over so many random choices of them.

    A seed chooses the same images each time, and those of a smaller k among those of a larger one.
    C is found for each choice by linear_probe's sweep, where there is a set `validation`; else it
    is the given one, or 1. `features`, `metric` and `max_iterations` are those of linear_probe.
    'shots' in the report has the standard deviation over seeds, too.

    ValueError if a class has fewer training images than the most of `shots`.
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

    def score(fit: Fit, part: Examples) -> float:
        probe = Probe.of(fit, task.names, features=features)
        return METRICS[metric](probe.scores(part.rows), part)

    swept = None
    if C is None and validation is not None:
        swept = functools.partial(score, part=task.parts['validation'])
    scores, chosen = ({k: [] for k in shots} for _ in range(2))
    with Progress('probes', seeds * len(shots), unit='probes', log=False) as progress:
        for seed in range(seeds):
            places, rank = _few_of_each(task.parts['train'].targets, shots[-1], seed)
            few = task.parts['train'].at(places)
            # Of one size for every k and seed: compiled once.
            regression = Regression(few.rows, few.targets, len(task.names))
            for k in shots:
                fit_some = functools.partial(
                    regression.fit, among=rank < k, max_iterations=max_iterations
                )
                fit = _fit(fit_some, C, swept)
                scores[k].append(score(fit, task.parts['test']))
                chosen[k].append(fit.C)
                progress.advance()
    means = {k: float(np.mean(own)) for k, own in scores.items()}
    return {
        **{f'{metric}@{k}': mean for k, mean in means.items()},
        'images': len(task.parts['test']),
        'unlabeled': task.parts['test'].unlabeled,
        'classes': len(task.names),
        'classes_without_images': task.empty,
        'features': features,
        'width': task.parts['train'].rows.shape[1],
        'seeds': seeds,
        'shots': [[k, means[k], float(np.std(own)), own] for k, own in scores.items()],
        'C_of_shots': [[k, own] for k, own in chosen.items()],
    }


def _fit(fit: Callable[..., Fit], C: float | None, score: Callable[[Fit], float] | None) -> Fit:
    """The fit at C, or where it scores best."""
    if score is None:
        return fit(1.0 if C is None else C)
    return _sweep.best(_sweep.sweep(lambda C, start: fit(C, start=start), score))


def _few_of_each(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many random places of each class, and the rank of each place in its class."""
    rng = np.random.default_rng(seed)
    classes = range(labels.max() + 1)
    places = [rng.permutation(np.flatnonzero(labels == k))[:count] for k in classes]
    return np.concatenate(places), np.tile(np.arange(count), len(classes))


def _checked(shots: int | Sequence[int]) -> list[int]:
    """The numbers of images a class, rising."""
    several = [shots] if isinstance(shots, int) else shots
    right = isinstance(several, Sequence) and all(type(k) is int and k > 0 for k in several)
    if not right or not len(several):
        raise ValueError(
            f'evals/fewshot: shots is {shots!r}; expected whole numbers above 0, as {list(SHOTS)}'
        )
    return sorted({*several})


def _check_one_label(data: Any, *, several: bool) -> None:
    if several:
        raise ValueError(f'evals/fewshot: {data} has several labels an image; expected one')


def _check_enough(task: Task, most: int, train: Any) -> None:
    counts = np.bincount(task.parts['train'].targets, minlength=len(task.names))
    least = int(counts.argmin())
    if counts[least] < most:
        raise ValueError(
            f'evals/fewshot: {train} has {counts[least]} images of {task.names[least]!r}, and '
            f'shots asks for {most} of each class; the most that it has of all is {counts[least]}'
        )
