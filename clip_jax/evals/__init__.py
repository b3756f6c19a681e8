"""Evaluations. One file is one way to score a model: `evaluate(encode_image, encode_text, data,
**options) -> report`.

`encode_image(images)` and `encode_text(texts)` return unit-length embeddings, float32 [N, D];
`data` is a `clip_jax.data.sources.Source`. Options are keyword arguments. Configs and the command
line give an option that is annotated as `Source` or `Source | None` as a SPEC; it is opened before
the call.

`report` is a dict that can be written as JSON:

    scores        {name: score(value, better=..., unit=...), ...}; the first is the headline
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
"""

from typing import Any, SupportsFloat

from clip_jax import lookup
from clip_jax.evals._embed import records as records


def score(
    value: SupportsFloat, *, better: str = 'higher', unit: str = 'fraction'
) -> dict[str, Any]:
    """Makes an entry of a report's `scores`.

    Args:
        value: the number.
        better: 'higher' or 'lower', the direction in which models improve.
        unit: 'fraction' (0 to 1, shown in percent), 'rank' (1 is best), or any other word, such as
            'nats'.

    Returns:
        A dict of the three.

    Raises:
        ValueError: `better` is neither 'higher' nor 'lower'.
    """
    lookup.check(better, ('higher', 'lower'), what='score: better')
    return {'value': float(value), 'better': better, 'unit': unit}
