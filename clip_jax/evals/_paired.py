"""Which images a model gets right, packed into a report, and the paired comparison of two models
on the same images.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.evals import _intervals

KEY = 'correct'


class Comparison(NamedTuple):
    """How two models differ on the same images.

    Attributes:
        score: what an image being right means, a score of both reports.
        images: how many there are.
        wins: images that only the first model gets right.
        losses: images that only the second one gets right.
        difference: score of the first minus score of the second.
        interval: the difference's 95 % bootstrap interval over images; None if no image differs.
        p_value: of McNemar's exact test: twice the binomial probability, at most 1, that of the
            images that differ as few as the smaller of wins and losses go to one model.
    """

    score: str
    images: int
    wins: int
    losses: int
    difference: float
    interval: tuple[float, float] | None
    p_value: float


def packed(right: Sequence[bool] | np.ndarray, truth: Any) -> dict[str, Any]:
    """Packs which images are right, for a report's `correct`.

    Args:
        right: for each image, bool [N].
        truth: what the images' answers are compared with, such as labels, as JSON values: images
            of two reports are the same only if this is.

    Returns:
        'images', the number of them; 'truth', a hash; 'bits', a bit for each in base64.
    """
    right = np.asarray(right, bool)
    content = json.dumps(truth, ensure_ascii=False).encode()
    return {
        'images': len(right),
        'truth': hashlib.sha256(content).hexdigest()[:16],
        'bits': base64.b64encode(np.packbits(right).tobytes()).decode(),
    }


def unpacked(entry: Mapping[str, Any]) -> np.ndarray:
    """Returns which images are right, bool [N]; ValueError if the entry is not of `packed`."""
    try:
        bits = np.frombuffer(base64.b64decode(entry['bits'], validate=True), np.uint8)
        count = entry['images']
        if type(count) is not int or len(bits) != -(-count // 8):
            raise ValueError(f'{len(bits)} bytes of {count!r} images')
        return np.unpackbits(bits, count=count).astype(bool)
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise ValueError(
            f'report: {KEY!r} is not as clip-jax eval writes it ({error}); run it again'
        ) from None


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Comparison]:
    """Compares two models, image by image, by their reports of one evaluation on the same data.

    Args:
        one: the report of the first model.
        other: the report of the second model.

    Returns:
        A comparison for each score of which both reports say which images are right.

    Raises:
        ValueError: the reports are of other evaluations, data or images.

    Source: McNemar, Psychometrika 12, 1947; exact: Fagerland et al., BMC Medical Research
    Methodology 13:91, 2013, section 2.
    """
    for key, what in (('type', 'evaluations'), ('data', 'data'), ('data_options', 'data options')):
        if one.get(key) != other.get(key):
            raise ValueError(f'different {what}: {one.get(key)} and {other.get(key)}')
    if not (one.get(KEY) and other.get(KEY)):
        raise ValueError('a report does not say which images are right; run the evaluation again')
    names = [name for name in one[KEY] if name in other[KEY]]
    if not names:
        raise ValueError(f'different scores: {", ".join(one[KEY])} and {", ".join(other[KEY])}')
    return [_comparison(name, one[KEY][name], other[KEY][name]) for name in names]


def _comparison(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Comparison:
    first, second = unpacked(one), unpacked(other)
    if len(first) != len(second):
        raise ValueError(f'different images: {len(first):,} and {len(second):,} of them')
    if one.get('truth') != other.get('truth'):
        raise ValueError('different images: their labels or captions differ, or their order')
    wins, losses = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return Comparison(name, len(first), wins, losses, *_difference(wins, losses, len(first)))


def _difference(
    wins: int, losses: int, images: int
) -> tuple[float, tuple[float, float] | None, float]:
    """The difference, its interval and the p value."""
    from scipy import stats  # it takes half a second to import

    kinds = np.array([wins, losses, images - wins - losses])
    interval = _intervals.of_kinds(kinds, lambda drawn: (drawn[:, 0] - drawn[:, 1]) / images)
    fewer, differing = min(wins, losses), wins + losses
    p_value = min(1.0, 2 * float(stats.binom.cdf(fewer, differing, 0.5))) if differing else 1.0
    return (wins - losses) / images, interval, p_value
