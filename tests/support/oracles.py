"""Both losses and their gradients by hand, in float64."""

import numpy as np


def softmax(image, text, scale, bias=None, mask=None):
    """Returns value and gradients (image, text, scale, bias), and the size of each.

    The size of a gradient of a number is that of its summands, which cancel.
    """
    image, text, scale, _, valid = _float64(image, text, scale, bias, mask)
    cosine = image[valid] @ text[valid].T
    n = len(cosine)

    def log_softmax(x, axis):
        x = x - x.max(axis=axis, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))

    rows, columns = log_softmax(scale * cosine, 1), log_softmax(scale * cosine, 0)
    value = -(np.trace(rows) + np.trace(columns)) / (2 * n)
    slope = (np.exp(rows) + np.exp(columns) - 2 * np.eye(n)) / (2 * n)
    return _gradients(value, slope, cosine, image, text, scale, valid)


def sigmoid(image, text, scale, bias=None, mask=None):
    """As `softmax`, of the sigmoid loss."""
    image, text, scale, bias, valid = _float64(image, text, scale, bias, mask)
    cosine = image[valid] @ text[valid].T
    n = len(cosine)
    sign = 2 * np.eye(n) - 1
    argument = sign * (scale * cosine + bias)
    value = np.logaddexp(0, -argument).sum() / n
    slope = -sign / (1 + np.exp(argument)) / n
    return _gradients(value, slope, cosine, image, text, scale, valid)


def _float64(image, text, scale, bias, mask):
    numbers = (np.asarray(x, np.float64) for x in (image, text, scale, 0 if bias is None else bias))
    return *numbers, np.ones(len(image), bool) if mask is None else np.asarray(mask)


def _gradients(value, slope, cosine, image, text, scale, valid):
    d_image, d_text = np.zeros_like(image), np.zeros_like(text)
    d_image[valid] = scale * slope @ text[valid]
    d_text[valid] = scale * slope.T @ image[valid]
    summands = slope * cosine
    exact = value, d_image, d_text, summands.sum(), slope.sum()
    sizes = *map(np.linalg.norm, exact[:3]), np.abs(summands).sum(), np.abs(slope).sum()
    return exact, sizes
