"""Effective robustness: how far a model's accuracy on a shifted test set is above what its accuracy
on the original one predicts (Taori et al. 2020, arXiv 2007.00644, section 2.1).

The prediction is a line through the accuracies of several models on the logit scale, where those of
models without special training lie close to one.
"""

from collections.abc import Sequence

import numpy as np

FEWEST = 3  # models that a line is fitted to: it goes through any two


def fit(original: Sequence[float], shifted: Sequence[float]) -> tuple[float, float] | None:
    """Fits a line by least squares on the logit scale.

    Args:
        original: accuracies of models on the original set, from 0 to 1.
        shifted: their accuracies on the shifted set.

    Returns:
        (slope, intercept); None if fewer than FEWEST models have accuracies above 0 and below 1 on
        both, or if those on the original set are all the same.
    """
    pairs = np.array([p for p in zip(original, shifted, strict=True) if 0 < min(p) <= max(p) < 1])
    if len(pairs) < FEWEST or np.ptp(pairs[:, 0]) == 0:
        return None
    x, y = _logit(pairs).T
    spread = x - x.mean()
    slope = float(np.sum(spread * y) / np.sum(spread**2))
    return slope, float(y.mean() - slope * x.mean())


def effective(
    original: float | None, shifted: float | None, line: tuple[float, float]
) -> float | None:
    """Returns the effective robustness of a model, as a difference of accuracies; None if one of
    them is not known, or where the line predicts nothing: at an accuracy of 0 or 1.
    """
    if original is None or shifted is None or not 0 < original < 1:
        return None
    slope, intercept = line
    predicted = 1 / (1 + np.exp(-(slope * float(_logit(original)) + intercept)))
    return float(shifted - predicted)


def _logit(accuracy: np.ndarray | float) -> np.ndarray:
    return np.log(accuracy) - np.log1p(-np.asarray(accuracy))
