"""Calibration of a classifier: whether its probabilities are the frequencies with which it is right
(Guo et al. 2017, arXiv 1706.04599).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from scipy import special

from clip_jax.evals import score

BINS = 15  # as in section 5 of the paper
LOWEST, HIGHEST = 0.01, 100.0  # temperatures
MOST_STEPS = 60
TOLERANCE = 1e-10  # of the logarithm of the temperature
Chunk = tuple[np.ndarray, np.ndarray]  # logits [n, K] of some images, and their classes, int [n]
Pass = Callable[[], Iterable[Chunk]]  # makes a pass over all images


class Predictions(NamedTuple):
    """What calibration needs of each image.

    Attributes:
        confidence: the highest probability, float [N].
        loss: the negative log-likelihood in nats, float [N].
    """

    confidence: np.ndarray
    loss: np.ndarray


def measured(
    chunks: Pass, right: np.ndarray, *, sigmoid: bool = False, validation: Pass | None = None
) -> dict[str, Any]:
    """Measures the calibration of a classifier, for its report.

    Args:
        chunks: makes a pass over logits and classes of the test set.
        right: which images of the test set are classified correctly, bool [N].
        sigmoid: as in `predictions`.
        validation: the same as `chunks` for the validation set, on which a temperature is fitted.

    Returns:
        The report's 'scores': `ece` (the expected calibration error) and `nll` (the mean negative
        log-likelihood); with a validation set also `fitted/ece` and `fitted/nll`, of logits that
        are divided by the fitted temperature. And its 'calibration'.
    """
    scores: dict[str, Any] = {}

    def of(divisor: float, prefix: str) -> dict[str, Any]:
        confidence, loss = predictions(chunks(), sigmoid=sigmoid, temperature=divisor)
        bins = reliability(confidence, right)
        scores[f'{prefix}ece'] = score(expected_error(bins), better='lower')
        scores[f'{prefix}nll'] = score(loss.mean(), better='lower', unit='nats')
        return {'temperature': divisor, 'bins': bins}

    found = {'activation': 'sigmoid' if sigmoid else 'softmax', **of(1.0, '')}
    if validation:
        found['fitted'] = of(temperature(validation, sigmoid=sigmoid), 'fitted/')
    return {'scores': scores, 'calibration': found}


def predictions(
    chunks: Iterable[Chunk], *, sigmoid: bool = False, temperature: float = 1.0
) -> Predictions:
    """Returns the confidence and the negative log-likelihood of each image.

    Args:
        chunks: logits and classes.
        sigmoid: each class has a probability of its own; the likelihood is then that of all K
            answers, yes for the image's class and no for the others. By default a softmax.
        temperature: logits are divided by it.

    Returns:
        Both, over all chunks.
    """
    confidence, loss = [], []
    for logits, classes in chunks:
        z = logits / temperature
        own, highest = z[np.arange(len(z)), classes], z.max(axis=1)
        if sigmoid:
            confidence.append(special.expit(highest))
            loss.append(np.logaddexp(0, z).sum(axis=1) - own)
        else:
            total = np.exp(z - highest[:, None]).sum(axis=1)
            confidence.append(1 / total)
            loss.append(np.log(total) + highest - own)
    return Predictions(np.concatenate(confidence), np.concatenate(loss))


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Returns the bins of a reliability diagram: BINS of equal width, without those that have no
    image; a bin holds the confidences above its lower edge, up to its upper edge.

    Args:
        confidence: the probability of each prediction, float [N], 0 to 1.
        right: whether it is right, bool [N].

    Returns:
        Rows [low, high, images, mean confidence, accuracy].
    """
    place = np.clip(np.ceil(np.asarray(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    sums = np.bincount(place, confidence, BINS), np.bincount(place, right, BINS)
    return [
        [k / BINS, (k + 1) / BINS, int(counts[k]), *(float(x[k] / counts[k]) for x in sums)]
        for k in np.flatnonzero(counts).tolist()
    ]


def expected_error(bins: list[list[float]]) -> float:
    """Returns the expected calibration error: the mean over images of |accuracy - mean confidence|
    of their bin (equation 3 of the paper).
    """
    total = sum(row[2] for row in bins)
    return sum(count * abs(accuracy - mean) for _, _, count, mean, accuracy in bins) / total


def temperature(chunks: Pass, *, sigmoid: bool = False) -> float:
    """Fits the temperature that minimizes the negative log-likelihood (section 4.2 of the paper).

    The loss is convex in 1 / temperature: Newton's method on the logarithm finds where its slope
    is 0, and bisection takes over where a step would leave the bracket.

    Args:
        chunks: makes a pass over logits and classes of the validation set; called some ten times.
        sigmoid: as in `predictions`.

    Returns:
        The temperature, from LOWEST to HIGHEST: LOWEST if all images are right by far.
    """

    def derivatives(u: float) -> tuple[float, float]:
        """The slope and the curvature of the loss with respect to 1 / temperature = exp(u)."""
        parts = [_derivatives(*chunk, math.exp(u), sigmoid=sigmoid) for chunk in chunks()]
        return math.fsum(x for x, _ in parts), math.fsum(x for _, x in parts)

    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    for end, beyond in (LOWEST, derivatives(high)[0] <= 0), (HIGHEST, derivatives(low)[0] >= 0):
        if beyond:
            logging.warning(
                'calibration: the loss on the validation set has no minimum at temperatures from '
                '%g to %g; %g is taken',
                *(LOWEST, HIGHEST, end),
            )
            return end
    u = 0.0
    for _ in range(MOST_STEPS):
        slope, curvature = derivatives(u)
        low, high = (low, u) if slope > 0 else (u, high)
        step = -slope / (curvature * math.exp(u)) if curvature > 0 else math.inf
        if abs(step) < TOLERANCE or high - low < TOLERANCE:
            break
        u = u + step if low < u + step < high else (low + high) / 2
    return math.exp(-u)


def _derivatives(
    logits: np.ndarray, classes: np.ndarray, factor: float, *, sigmoid: bool
) -> tuple[float, float]:
    """The first two derivatives of the summed loss of `logits * factor` by the factor."""
    own = logits[np.arange(len(logits)), classes]
    if sigmoid:
        p = special.expit(logits * factor)
        slope, curvature = p * logits, p * (1 - p) * logits**2
        return float(slope.sum() - own.sum()), float(curvature.sum())
    p = special.softmax(logits * factor, axis=1)
    mean = (p * logits).sum(axis=1)
    curvature = (p * (logits - mean[:, None]) ** 2).sum()
    return float((mean - own).sum()), float(curvature)
