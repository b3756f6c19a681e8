"""The model that a folder of embeddings was made with: loading it, and telling it from others."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clip_jax import pretrained
from clip_jax.data.embedding_store import Embeddings
from clip_jax.pretrained import Clip


def source_model(source: Embeddings, dtype: str = 'auto') -> Clip:
    """Loads the model that made a folder of embeddings.

    Args:
        source: the folder.
        dtype: compute dtype of the model: 'auto', 'float32' or 'bfloat16'.

    Returns:
        The model.

    Raises:
        ValueError: the path in the folder's description holds no model, or another one.
    """
    card = card_hash(source.description.card)
    return _load(source.description.model, source.fingerprint, card, str(source), dtype)


@functools.lru_cache(2)  # one search usually follows another
def _load(path: str, fingerprint: str, card: str, folder: str, dtype: str) -> Clip:
    advice = 'give the model that made it as --model=PATH, or model=PATH in Python'
    try:
        clip = pretrained.load(path, dtype=dtype)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{folder}: texts or images must be embedded, and its model cannot be loaded from '
            f'{path} ({error}); {advice}'
        ) from error
    if (pretrained.fingerprint(clip.variables), card_hash(clip.card)) != (fingerprint, card):
        raise ValueError(
            f'{folder}: texts or images must be embedded, and {path} holds another model now; '
            f'{advice}'
        )
    return clip


def check_source_model(clip: Clip, source: Embeddings, path: str = '') -> None:
    """Checks that a model made a folder of embeddings.

    Args:
        clip: the model.
        source: the folder.
        path: where the model was loaded from, for messages.

    Raises:
        ValueError: the folder was made by a model with other weights or another card.
    """
    found = pretrained.fingerprint(clip.variables)
    if found != source.fingerprint:
        raise ValueError(
            f'{source}: these are embeddings of another model: of {source.description.model} '
            f'(fingerprint {source.fingerprint[:8]}), not of {path or "the given one"} '
            f'({found[:8]}). Embed the data with this model, or evaluate that one'
        )
    theirs = source.description.card
    if card_hash(clip.card) != card_hash(theirs):
        parts = [
            part for part in theirs if card_hash(theirs[part]) != card_hash(clip.card.get(part))
        ]
        raise ValueError(
            f'{source}: these are embeddings of another model: its weights are those of '
            f'{path or "the given one"}, and the card differs in: {", ".join(parts)}. Embed the '
            'data with this model, or evaluate that one'
        )


def check_same_model(stored: list[Embeddings]) -> None:
    """Raises ValueError if folders of embeddings were made by different models."""

    def made_by(source: Embeddings) -> tuple[str, str]:
        return source.fingerprint, card_hash(source.description.card)

    for other in stored[1:]:
        if made_by(other) != made_by(stored[0]):
            raise ValueError(
                f'{stored[0]} and {other} are embeddings of different models: of '
                f'{stored[0].description.model} and of {other.description.model}'
            )


def card_hash(card: Mapping[str, Any]) -> str:
    """Returns 32 hexadecimal digits that identify a card."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:32]
