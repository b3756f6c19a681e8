"""Linear probe: logistic regression on frozen image features (CLIP, arXiv 2103.00020, section 3.2
and appendix A.3).
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evals import (
    _calibration,
    _intervals,
    _labeled,
    _paired,
    _scores,
    _sweep,
    _tables,
    score,
)
from clip_jax.evals._labeled import Examples, Task
from clip_jax.evals._logistic import Fit, Regression
from clip_jax.evals._probe import (
    METRICS,
    Probe,
    check_both,
    check_labels,
    check_metric,
    check_options,
    check_place,
)

VALIDATION = 5  # one in 5 training images is for validation, if there is no validation set


def evaluate(
    encode_image: Callable,
    encode_text: Callable,
    data: Source,
    *,
    train: Source,
    validation: Source | None = None,
    features: str = 'pre_projection',
    metric: str = 'accuracy',
    C: float | None = None,
    max_iterations: int = 1000,
    save: str | None = None,
) -> dict[str, Any]:
    """Fits a linear probe on a training set and scores it on a test set.

    Without a given C, the best of 96 values from 1e-6 to 1e6 is chosen on the validation set, or on
    a fifth of the training set, always the same; then all of both is fitted. Images with the label
    -1 are left out and counted.

    Args:
        encode_image: images -> features, float32 [N, D].
        encode_text: not used.
        data: the test set.
        train: the training set.
        validation: the validation set.
        features: 'pre_projection', the output of the image encoder before the projection, or
            'embedding'.
        metric: 'accuracy', 'mean_per_class', 'roc_auc' (two classes), or 'map_11_point' (several
            labels per image: a binary regression for each class).
        C: the inverse of the regularization strength, as scikit-learn has it.
        max_iterations: of L-BFGS, for each fit.
        save: file (.npz) for the fitted Probe.

    Returns:
        The report; its first score is the metric. Where images have one label, `ece` and `nll` are
        the calibration of the probe.

    Raises:
        ValueError: an option is wrong, or the data sets do not fit each other.
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
    regression = Regression(examples.features, examples.targets, len(task.names))
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
            check_both(validated, task.names, f'a fifth of {train}, on which C is chosen')
        tried = _sweep.sweep(
            lambda C, start: fit_some(C, among=~held_out, start=start),
            lambda fit: METRICS[metric](probe_of(fit).scores(validated.features), validated),
        )
        start = _sweep.best(tried)
        C = start.C
    seconds.append(time.monotonic())
    fit = fit_some(C, start=start)
    probe = probe_of(fit)
    seconds.append(time.monotonic())
    if save is not None:
        probe.save(save)
    embed, sweep, refit = np.diff(seconds).round(3).tolist()
    scores, tables = _scored(probe, task, metric)
    return {
        'scores': scores,
        'counts': _counts(task, examples, int(held_out.sum())),
        'info': {
            'features': features,
            'width': examples.features.shape[1],
            'C': fit.C,
            'classes_without_images': task.empty,
            **({'probe': save} if save is not None else {}),
        },
        **tables,
        'sweep': [[one.C, value] for one, value in tried],
        'fit': _about_fit(fit, [one for one, _ in tried]),
        'seconds_of': {'embedding': embed, 'sweep': sweep, 'last_fit': refit},
    }


def _counts(task: Task, examples: Examples, validation: int) -> dict[str, int]:
    """The counts of the report; `validation` of the examples validate C."""
    return {
        'images': len(task.parts['test']),
        'unlabeled': task.parts['test'].unlabeled,
        'training_images': len(examples) - validation,
        'validation_images': validation,
        'unlabeled_for_training': examples.unlabeled,
        'classes': len(task.names),
    }


def _about_fit(fit: Fit, tried: list[Fit]) -> dict[str, Any]:
    """What the report says of the last fit, and of those that C was chosen from."""
    return {
        'iterations': fit.iterations,
        'iterations_of_sweep': sum(one.iterations for one in tried),
        'converged': all(one.converged for one in [fit, *tried]),
        'objective': fit.objective,
    }


def _fitted(task: Task, *, split: bool) -> tuple[Examples, np.ndarray]:
    """Returns the examples of the last fit, and which of them validate C, bool [N]."""
    train, validation = task.parts['train'], task.parts.get('validation')
    if validation is not None:
        examples = train.followed_by(validation)
        return examples, np.arange(len(examples)) >= len(train)
    if not split:
        return train, np.zeros(len(train), bool)
    held_out = _labeled.held_out(train.one_hot(len(task.names)), VALIDATION)
    if not held_out.any():
        raise ValueError(
            'evals/linear_probe: the training set has one image per class, none to choose C with; '
            'give a validation set, or a C'
        )
    return train, held_out


def _scored(probe: Probe, task: Task, metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores on the test set, and tables by class."""
    test, names = task.parts['test'], task.names
    logits = probe.scores(test.features)
    value = METRICS[metric](logits, test)
    if task.several:
        scores = {metric: score(value)}
        values = _scores.average_precisions(logits, test.targets, points=11)
        counts = test.targets.sum(axis=0)
        return scores, {'per_class': _tables.per_class(names, counts, values)}
    guess = logits.argmax(axis=1)
    right, counts = _scores.per_class(guess, test.targets, len(names))
    interval = None
    if metric == 'accuracy':
        interval = _intervals.of_fraction(int(right.sum()), len(test))
    elif metric == 'mean_per_class':
        interval = _intervals.of_mean_per_class(right, counts)
    correct = guess == test.targets
    measured = _calibration.measured(lambda: [(logits, test.targets)], correct)
    return {metric: score(value, interval=interval), **measured['scores']}, {
        'per_class': _tables.per_class(names, counts, right / np.maximum(counts, 1)),
        'confusion': _tables.confusion(guess, test.targets, names),
        'mistakes': _mistakes(probe.probabilities(test.features), test, names),
        'calibration': measured['calibration'],
        'correct': {'accuracy': _paired.packed(correct, test.targets.tolist())},
    }


def _mistakes(probability: np.ndarray, test: Examples, names: list[str]) -> list[dict[str, Any]]:
    """The misclassified images with the greatest confidence."""
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
