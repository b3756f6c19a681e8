"""A fitted linear probe: its predictions, its metrics, and its file."""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.data.sources import Source
from clip_jax.evals import _scores
from clip_jax.evals._labeled import Examples, Task
from clip_jax.evals._logistic import Fit
from clip_jax.runtime import atomic, foreign_arrays, foreign_json, multihost

FEATURES = ('pre_projection', 'embedding')
# Name -> (logits [N, K], examples) -> number. Table 9 of arXiv 2103.00020 has that of each set.
METRICS: dict[str, Callable[[np.ndarray, Examples], float]] = {
    'accuracy': lambda z, x: _scores.accuracy(z.argmax(axis=1), x.targets),
    'mean_per_class': lambda z, x: _scores.mean_per_class(z.argmax(axis=1), x.targets, z.shape[1]),
    'map_11_point': lambda z, x: _scores.map_11_point(z, x.targets),
    'roc_auc': lambda z, x: _scores.roc_auc(z[:, 1] - z[:, 0], x.targets == 1),
}
CHUNK = 8192  # examples that are multiplied in float64 at a time
_ABOUT = {'classes': [str], 'features': str, 'several': bool, 'C': float, 'fingerprint': str}
KEYS = ('weights', 'bias', 'about')
COUNTS = ('max_iterations', 'seeds')


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier of frozen features.

    Attributes:
        weights: float64 [D, K]; of two classes, they are opposite.
        bias: float64 [K].
        classes: names of the K classes.
        features: what it is applied to: `clip.encode_image(images, features=probe.features)`.
        several: whether an image may belong to any number of classes.
        C: the inverse of the regularization strength.
        fingerprint: of the model, '' if unknown.
    """

    weights: np.ndarray
    bias: np.ndarray
    classes: list[str]
    features: str
    several: bool = False
    C: float = 0.0
    fingerprint: str = ''

    @classmethod
    def of(cls, fit: Fit, classes: list[str], **about: Any) -> 'Probe':
        """Makes a probe from a fit; the one column of a binary fit becomes two."""
        weights, bias = fit.weights, fit.bias
        if len(bias) == 1 and len(classes) == 2:
            weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.r_[-bias, bias] / 2
        return cls(weights, bias, list(classes), C=fit.C, **about)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Returns logits, float64 [N, K], of features [N, D]."""
        features = np.atleast_2d(features)
        if features.shape[1] != len(self.weights):
            raise ValueError(
                f'features have width {features.shape[1]}; this probe was fitted on '
                f'{self.features} features of width {len(self.weights)}'
            )
        starts = range(0, len(features), CHUNK)
        blocks = [features[i : i + CHUNK].astype(np.float64) @ self.weights for i in starts]
        return np.concatenate([np.zeros((0, len(self.bias))), *blocks]) + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the class of each example, an index into `classes`, int [N]; if `several`, bool
        [N, K].
        """
        scores = self.scores(features)
        return scores > 0 if self.several else scores.argmax(axis=1)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the probability of each class, [N, K]; they sum to 1 unless `several`."""
        scores = self.scores(features)
        if self.several:
            return np.exp(-np.logaddexp(0, -scores))
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the probe to a file, atomically; replaces another probe."""
        path = check_place(path)
        if not multihost.is_primary():
            return
        about = {
            'classes': self.classes,
            'features': self.features,
            'several': self.several,
            'C': self.C,
            'fingerprint': self.fingerprint,
        }
        file, text = io.BytesIO(), np.array(json.dumps(about, ensure_ascii=False))
        np.savez(file, weights=self.weights, bias=self.bias, about=text)
        atomic.write(path, file.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Probe':
        """Reads a saved probe; nothing in the file is executed. ValueError if it is not one."""
        path = pathlib.Path(path).expanduser()
        if not path.is_file():
            raise ValueError(f'{path}: no such file; expected a saved linear probe (.npz)')
        try:
            arrays = foreign_arrays.open_npz(path)
            weights, bias, about = (arrays[key].read() for key in KEYS)
            about = foreign_json.parse(str(about), 'about', _ABOUT)
            _check_arrays(weights, bias, about['classes'])
            return cls(weights, bias, **about)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f'{path}: not a linear probe ({error}); expected an .npz with {", ".join(KEYS)}, '
                'as eval linear_probe --save=FILE writes it'
            ) from error


def _check_arrays(weights: np.ndarray, bias: np.ndarray, classes: list[str]) -> None:
    """Raises a ValueError for arrays that are no linear map to the classes."""
    for name, array, axes in (('weights', weights, 2), ('bias', bias, 1)):
        if array.dtype.kind != 'f' or array.ndim != axes or array.shape[-1] != len(classes):
            raise ValueError(f'{name} are {array.dtype} {array.shape} of {len(classes)} classes')
        if not np.isfinite(array).all():
            raise ValueError(f'{name} are not finite')


def check_place(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path for a probe; ValueError if another file exists there, or if it is not
    writable.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f'save is {path!r}; expected the name of a file')
    if multihost.is_primary():  # which writes it
        atomic.check_place(os.path.expanduser(path), 'save')
    path = pathlib.Path(path).expanduser()
    if path.exists():
        try:
            Probe.load(path)
        except ValueError as error:
            raise ValueError(f'save: {path} exists and is not a probe; name a new file') from error
    return path


def check_options(what: str, *, features: str, metric: str, **numbers: float | None) -> None:
    """Raises ValueError for an unknown feature or metric, or a number that is not above 0."""
    lookup.check(features, FEATURES, what=f'{what}: features')
    lookup.check(metric, METRICS, what=f'{what}: metric')
    for name, value in numbers.items():
        kind = (int,) if name in COUNTS else (int, float)
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 < value < np.inf
        if value is not None and not right:
            a = 'an integer' if name in COUNTS else 'a number'
            raise ValueError(f'{what}: {name} is {value!r}; expected {a} above 0')


def check_metric(metric: str, task: Task, sources: Mapping[str, Source]) -> None:
    """Raises ValueError if a metric does not fit a task, whose parts come from `sources`."""
    check_labels(metric, sources['test'], several=task.several)
    if metric != 'roc_auc':
        return
    if len(task.names) != 2:
        raise ValueError(
            f'metric roc_auc does not fit {sources["test"]}, which has {len(task.names)} classes; '
            'expected two'
        )
    for part, source in sources.items():
        check_both(task.parts[part], task.names, source)


def check_labels(metric: str, source: Source, *, several: bool) -> None:
    """Raises ValueError if a metric does not fit images with one label, or with several."""
    if several != (metric == 'map_11_point'):
        many = 'several labels' if several else 'one label'
        fit = 'map_11_point' if several else ', '.join(m for m in METRICS if m != 'map_11_point')
        raise ValueError(
            f'metric {metric} does not fit {source}, whose images have {many} each; expected {fit}'
        )


def check_both(examples: Examples, names: Sequence[str], what: Any) -> None:
    """Raises ValueError if all examples belong to one of the two classes."""
    (found, *others) = np.unique(examples.targets)
    if not others:
        raise ValueError(
            f'metric roc_auc does not fit {what}, all of whose images have the class '
            f'{names[found]!r}; it needs both'
        )
