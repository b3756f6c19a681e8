"""Captions of images by a loaded model with a caption decoder: `Clip.caption`."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from clip_jax import lookup, sharding
from clip_jax.models import generate, inference
from clip_jax.models.generate import Generation

# What the model and its tokenizer say.
OF_MODEL = ('start_id', 'end_id', 'pad_id')
OPTIONS = [name for name in Generation.__dataclass_fields__ if name not in OF_MODEL]


def start_id(tokenizer: Any) -> int:
    """Returns the token that begins every text of a tokenizer; ValueError if there is none."""
    if tokenizer.pad_id == tokenizer.eot_id:
        raise ValueError(
            f'captions: the tokenizer {tokenizer.card["name"]} pads with its end token; expected '
            'another one, since padding is not predicted'
        )
    first = int(tokenizer([''])[0][0])
    if first in (tokenizer.eot_id, tokenizer.pad_id):
        raise ValueError(
            f'captions: texts of the tokenizer {tokenizer.card["name"]} have no start token; '
            'expected one that has, such as bpe, or sentencepiece with add_bos'
        )
    return first


def settings(clip: Any, **options: Any) -> Generation:
    """Returns how a model generates captions.

    Args:
        clip: the Clip.
        **options: fields of Generation; the default of `max_length` is 30, or the model's
            context_length if that is less.

    Raises:
        ValueError: the model has no decoder or no tokenizer, or an option is wrong.
    """
    most = generate.context_length(clip.model)
    if clip.tokenizer is None:
        raise ValueError('captions: this model has no tokenizer; add its files and load it again')
    for name in options:
        lookup.check(name, OPTIONS, what='captions: option')
    length = min(Generation.max_length, most)
    defaults: dict[str, Any] = {'max_length': length}
    if options.get('max_length', length) < Generation.min_length:
        defaults['min_length'] = 2
    tokens = clip.tokenizer.eot_id, clip.tokenizer.pad_id
    return Generation(start_id(clip.tokenizer), *tokens, **{**defaults, **options})


def caption(
    clip: Any,
    batches: Iterable[np.ndarray],
    *,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Writes a caption for each image.

    Args:
        clip: the Clip, whose model has a decoder.
        batches: preprocessed images, uint8 [B, size, size, 3].
        seed: of the random numbers of method='sample'.
        **options: see `settings`.

    Raises:
        ValueError: see `settings`.
    """
    how = settings(clip, **options)
    compiled = functools.partial(
        generate.captions,
        model=clip.model,
        mean=tuple(clip.preprocess.mean),
        std=tuple(clip.preprocess.std),
        how=how,
        where=sharding.replicated(clip.mesh),
    )
    texts: list[str] = []
    for batch in batches:
        if clip.on_batch:
            clip.on_batch()
        images = inference.sharded(batch, clip.batch_size, clip.mesh)
        index = np.arange(len(texts), len(texts) + len(images), dtype=np.int32)
        tokens = compiled(clip.variables, images, jax.random.key(seed), index)
        texts += [clip.tokenizer.decode(row[1:]) for row in np.asarray(tokens)[: len(batch)]]
    return texts
