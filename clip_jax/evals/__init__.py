"""Evaluations. One file is one way to score a model: `evaluate(encode_image, encode_text, data,
**options) -> report`.

`encode_image(images)` and `encode_text(texts)` return unit-length embeddings, float32 [N, D];
`logits_of(encode_text)` is what makes logits of their cosine similarities, where that is known.
`data` is a `clip_jax.data.sources.Source`. Options are keyword arguments. Configs and the command
line give an option that is annotated as `Source` or `Source | None` as a SPEC; it is opened before
the call.

`report` is a dict that can be written as JSON:

    scores        {name: score(value, better=..., unit=..., interval=...), ...}; the first is the
                  headline
    counts        {name: int, ...}: images, classes, ...
    info          {name: number, text or list, ...}: other facts to print, such as the chance level

Other keys are free. These become figures (see clip_jax/reports):

    per_class     [[name, examples, score], ...]
    confusion     {'classes': [...], 'matrix': [[...], ...], 'of': number of all classes}; a row of
                  the matrix is the true class, a column the predicted one
    mistakes      [{'index', 'label', 'guess', 'score', 'score_of_label'}, ...]; the last key is
                  optional
    examples      [{'index', 'label', 'top': [[name, score], ...]}, ...]
    similarity    {'indices', 'texts', 'matrix'} of a few images and texts
    queries       {'image_to_text': [{'index', 'rank', 'top': [[caption, score, right], ...]}, ...],
                  'text_to_image': [{'text', 'index', 'rank', 'top': [[index, score, right], ...]}]}
    sweep         [[C, score on the validation set], ...]; `info['C']` is marked
    dims          [[dim, headline score], ...]; the option `dims` of every evaluation adds it
    shots         [[examples per class, mean, std, [score of each seed]], ...]
    groups        {TITLE: [[group, examples, value], ...], ...}, fractions of 1; a row may go on
                  with the low and the high end of a 95 % interval
    calibration   {'bins': [[low, high, images, mean confidence, accuracy], ...], 'activation':
                  'softmax' or 'sigmoid', 'temperature': 1.0}; with a fitted temperature also
                  'fitted', with the same keys

and `correct`, {score: _paired.packed(...)}, says which images are right, for paired comparisons.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np

from clip_jax import lookup
from clip_jax.evals._embed import records as records
from clip_jax.evals._paired import Comparison as Comparison
from clip_jax.evals._paired import compare as compare


class Logits(NamedTuple):
    """What makes logits of cosine similarities: `scale * similarity + bias`.

    Attributes:
        scale: the factor, the inverse of the temperature that the model was trained with.
        bias: of a model whose loss is a sigmoid; None if it is a softmax.
    """

    scale: float
    bias: float | None = None

    @property
    def sigmoid(self) -> bool:
        """Whether each label has a probability of its own."""
        return self.bias is not None


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """An `encode_text` that knows the logits of its model.

    Attributes:
        encode: texts -> unit-length embeddings, float32 [N, D].
        logits: returns the `Logits`, or None if they are not known; they may be known only after
            texts were embedded.
    """

    encode: Callable[..., np.ndarray]
    logits: Callable[[], Logits | None]

    def __call__(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """Returns the embeddings of texts."""
        return self.encode(texts, **options)


def logits_of(encode_text: Callable) -> Logits | None:
    """Returns the logits of the model that embeds texts, None if they are not known."""
    logits = getattr(encode_text, 'logits', None)
    return logits() if logits else None


def score(
    value: SupportsFloat,
    *,
    better: str = 'higher',
    unit: str = 'fraction',
    interval: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Makes an entry of a report's `scores`.

    Args:
        value: the number.
        better: 'higher' or 'lower', the direction in which models improve.
        unit: 'fraction' (0 to 1, shown in percent), 'rank' (1 is best), or any other word, such as
            'nats'.
        interval: the low and the high end of the 95 % confidence interval.

    Returns:
        A dict of the three, and of `interval` where there is one.

    Raises:
        ValueError: `better` is neither 'higher' nor 'lower'.
    """
    lookup.check(better, ('higher', 'lower'), what='score: better')
    entry = {'value': float(value), 'better': better, 'unit': unit}
    return entry | ({'interval': [*map(float, interval)]} if interval else {})
