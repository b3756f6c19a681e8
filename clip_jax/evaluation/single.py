"""Scores a checkpoint, or stored embeddings, with one evaluation; `suite` runs many."""

import functools
from collections.abc import Mapping
from typing import Any

from clip_jax import build, pretrained
from clip_jax.embeddings import source_model
from clip_jax.evaluation import encoders, evaluate
from clip_jax.places import resolve


def run(
    type_: str,
    options: Mapping[str, Any],
    spec: str,
    source_options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    model: str | None,
    dtype: str = 'auto',
    image_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores the model at a path, or stored embeddings.

    Args:
        type_: name of the plug-in, a file of evals/.
        options: its options.
        spec: SPEC of the data set to score.
        source_options: options of each kind of source.
        model: path of a checkpoint; None where all data are folders of embeddings.
        dtype: 'auto', 'float32' or 'bfloat16'.
        image_options: fields of the model's `Preprocess` to change: `gray16`, `max_pixels`.

    Returns:
        The report.

    Raises:
        ValueError: the plug-in, an option, the data or the model is wrong.
    """
    build.check_dtype(dtype)
    evaluation = evaluate.prepare(type_, options, spec, source_options, embeddings=True)
    encoders.check_model(model, evaluation.sources)
    if image_options and not model:
        raise ValueError(
            f'--{next(iter(image_options)).replace("_", "-")}: {spec} has no images to read; it is '
            'an option of clip-jax embed'
        )
    clip = pretrained.load(model, dtype=dtype) if model else None
    more = {}
    if clip and image_options:
        clip, more = clip.with_preprocess(**image_options), {'image_options': dict(image_options)}
    load = functools.partial(source_model.source_model, dtype=dtype)
    place = resolve.pinned(model) or model if model else None
    return evaluation.report(clip, path=place, load=load, **more)
