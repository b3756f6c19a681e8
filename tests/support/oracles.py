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


def softmax_of_texts(image, text, scale, bias=None, mask=None, negatives=None):
    """As `softmax`, of text [B, P, D] and negatives [B, N, D] or None, in loops over the pairs; the
    gradients are those of (image, text, negatives, scale, bias).
    """
    return _of_texts(_softmax_of_texts, image, text, scale, bias, mask, negatives)


def sigmoid_of_texts(image, text, scale, bias=None, mask=None, negatives=None):
    """As `softmax_of_texts`, of the sigmoid loss."""
    return _of_texts(_sigmoid_of_texts, image, text, scale, bias, mask, negatives)


def _of_texts(differentiate, image, text, scale, bias, mask, negatives):
    """Brings the texts of valid pairs into rows and the gradients back into their places."""
    image, text, scale, bias, valid = _float64(image, text, scale, bias, mask)
    several, size = text.shape[1], image.shape[1]
    hard = np.zeros((len(image), 0, size)) if negatives is None else np.float64(negatives)
    rows = np.concatenate([x[valid].reshape(-1, size) for x in (text, hard)])
    cosine = image[valid] @ rows.T
    owner = np.concatenate(
        [np.repeat(np.arange(valid.sum()), several), np.full(len(rows) - several * valid.sum(), -1)]
    )
    value, slope = differentiate(scale * cosine + bias, owner)
    d_image, d_text, d_hard = map(np.zeros_like, (image, text, hard))
    d_image[valid] = scale * slope @ rows
    d_rows = scale * slope.T @ image[valid]
    d_text[valid] = d_rows[owner >= 0].reshape(-1, several, size)
    d_hard[valid] = d_rows[owner < 0].reshape(valid.sum(), -1, size)
    summands = slope * cosine
    exact = value, d_image, d_text, d_hard, summands.sum(), slope.sum()
    sizes = *map(np.linalg.norm, exact[:4]), np.abs(summands).sum(), np.abs(slope).sum()
    return exact, sizes


def _softmax_of_texts(logits, owner):
    value, slope = 0, np.zeros_like(logits)
    pairs = [(owner[column], column) for column in np.flatnonzero(owner >= 0)]
    for row, column in pairs:
        # The positive first, then the texts that are not of this image.
        columns = np.array([column, *np.flatnonzero(owner != row)])
        rows = np.array([row, *(i for i in range(len(logits)) if i != row)])
        parts = (row, columns), (rows, column)
        for part in parts:
            probabilities = np.exp(logits[part] - logits[part].max())
            probabilities /= probabilities.sum()
            value -= np.log(probabilities[0])
            probabilities[0] -= 1
            slope[part] += probabilities
    return value / (2 * len(pairs)), slope / (2 * len(pairs))


def _sigmoid_of_texts(logits, owner):
    sign = np.where(owner == np.arange(len(logits))[:, None], 1, -1)
    count = (owner >= 0).sum()
    argument = sign * logits
    return np.logaddexp(0, -argument).sum() / count, -sign / (1 + np.exp(argument)) / count
