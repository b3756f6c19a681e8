"""Linear probe: logistic regression on the frozen features of images (arXiv 2103.00020, section 3.2
and appendix A.3).
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.evals import _labeled, _scores, _sweep, _tables
from clip_jax.evals._labeled import Examples, Task
from clip_jax.evals._logistic import Regression
from clip_jax.evals._probe import (
    METRICS,
    Probe,
    check_both,
    check_labels,
    check_metric,
    check_options,
    check_place,
)

VALIDATION = 5  # one in so many training images, where there is no validation set


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Any,
    *,
    train: Any,
    validation: Any = None,
    features: str = 'pre_projection',
    metric: str = 'accuracy',
    C: float | None = None,
    max_iterations: int = 1000,
    save: str | None = None,
) -> dict[str, Any]:
    """Returns the `metric` on the test set `data` of logistic regression on the set `train`.

    `features`: 'pre_projection', the image encoder's output before the projection, or
    'embedding'. `metric`:
    'accuracy', 'mean_per_class', 'roc_auc' (two classes), or 'map_11_point' (several labels an
    image: one binary regression a class). The C of the penalty, as scikit-learn has it, is the best
    of 96 steps from 1e-6 to 1e6 on the set `validation`, or else on a fifth of `train`, always the
    same; with it all of both is fitted. Or it is the given one. `save` is the file (.npz) for the
    fitted Probe.

    Images with the label -1 are left out, and counted. ValueError for sets that do not fit.
    """
    numbers = {'C': C, 'max_iterations': max_iterations}
    check_options('evals/linear_probe', features=features, metric=metric, **numbers)
    if save is not None:
        check_place(save)
    seconds = [time.monotonic()]
    sources = {'train': train, 'validation': validation, 'test': data}
    sources = {part: source for part, source in sources.items() if source is not None}
    if _labeled.several_at_first(*sources.values()):
        check_labels(metric, data, several=True)
    task = _labeled.read(encode_image, sources, features)
    check_metric(metric, task, sources)
    seconds.append(time.monotonic())

    examples, held_out = _fitted(task, split=C is None)
    regression = Regression(examples.rows, examples.targets, len(task.names))
    fit_some = functools.partial(regression.fit, max_iterations=max_iterations)
    probe_of = functools.partial(
        Probe.of,
        classes=task.names,
        features=features,
        several=task.several,
        fingerprint=getattr(train, 'fingerprint', ''),
    )
    tried, start = [], None
    if C is None:
        validated = examples.at(held_out)
        if metric == 'roc_auc':
            check_both(validated, task.names, f'a fifth of {train}, on which C is to be chosen')
        tried = _sweep.sweep(
            lambda C, start: fit_some(C, among=~held_out, start=start),
            lambda fit: METRICS[metric](probe_of(fit).scores(validated.rows), validated),
        )
        start = _sweep.best(tried)
        C = start.C
    seconds.append(time.monotonic())
    fit = fit_some(C, start=start)
    probe = probe_of(fit)
    seconds.append(time.monotonic())
    report = _scored(probe, task, metric)
    if save is not None:
        probe.save(save)
        report['probe'] = save
    embed, sweep, refit = np.diff(seconds).round(3).tolist()
    return report | {
        'features': features,
        'width': examples.rows.shape[1],
        'training_images': len(examples) - int(held_out.sum()),
        'validation_images': int(held_out.sum()),
        'unlabeled': task.parts['test'].unlabeled,
        'unlabeled_for_training': examples.unlabeled,
        'classes': len(task.names),
        'classes_without_images': task.empty,
        'sweep': [[one.C, score] for one, score in tried],
        'fit': {
            'C': fit.C,
            'iterations': fit.iterations,
            'iterations_of_sweep': sum(one.iterations for one, _ in tried),
            'converged': all(one.converged for one in [fit, *(one for one, _ in tried)]),
            'objective': fit.objective,
        },
        'seconds_of': {'embedding': embed, 'sweep': sweep, 'last_fit': refit},
    }


def _fitted(task: Task, *, split: bool) -> tuple[Examples, np.ndarray]:
    """All that the last fit sees, and which of it, bool [N], the sweep is to be scored on."""
    train, validation = task.parts['train'], task.parts.get('validation')
    if validation is not None:
        examples = train.followed_by(validation)
        return examples, np.arange(len(examples)) >= len(train)
    if not split:
        return train, np.zeros(len(train), bool)
    held_out = _labeled.held_out(train.one_hot(len(task.names)), VALIDATION)
    if not held_out.any():
        raise ValueError(
            'evals/linear_probe: the training set has one image a class, and none to choose C by; '
            'give a validation set, or a C'
        )
    return train, held_out


def _scored(probe: Probe, task: Task, metric: str) -> dict[str, Any]:
    """The score on the test set, and what is right and wrong class by class."""
    test, names = task.parts['test'], task.names
    logits = probe.scores(test.rows)
    report = {metric: METRICS[metric](logits, test), 'images': len(test)}
    if task.several:
        values = _scores.average_precisions(logits, test.targets, points=11)
        counts = test.targets.sum(axis=0)
        return report | {'per_class': _tables.per_class(names, counts, values)}
    guess = logits.argmax(axis=1)
    right, counts = _scores.per_class(guess, test.targets, len(names))
    return report | {
        'per_class': _tables.per_class(names, counts, right / np.maximum(counts, 1)),
        'confusion': _tables.confusion(guess, test.targets, names),
        'mistakes': _mistakes(probe.probabilities(test.rows), test, names),
    }


def _mistakes(probability: np.ndarray, test: Examples, names: list[str]) -> list[dict[str, Any]]:
    """The images that are taken for another class with the greatest confidence."""
    guess, places = probability.argmax(axis=1), np.arange(len(test))
    own, highest = probability[places, test.targets], probability[places, guess]
    worst = _tables.most_confident(guess != test.targets, highest - own)
    return [
        {
            'index': int(test.indices[i]),
            'label': names[test.targets[i]],
            'guess': names[guess[i]],
            'score': round(float(highest[i]), 4),
            'score_of_label': round(float(own[i]), 4),
        }
        for i in worst
    ]
