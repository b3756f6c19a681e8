"""Which model made embeddings: hashes of cards, and checks of these and of fingerprints."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from clip_jax.data.embedding_store import Embeddings
from clip_jax.models.fingerprint import fingerprint


class Model(Protocol):
    """What identifies a model; `pretrained.Clip` is one."""

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""

    @property
    def card(self) -> dict[str, Any]:
        """Architecture, preprocessing and tokenizer."""


def check_source_model(clip: Model, source: Embeddings, path: str = '') -> None:
    """Checks that a model made a folder of embeddings.

    Args:
        clip: the model.
        source: the folder.
        path: where the model was loaded from, for messages.

    Raises:
        ValueError: the folder was made by a model with other weights or another card.
    """
    found = fingerprint(clip.variables)
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
        dims = stored[0].description.dim, other.description.dim
        if dims[0] != dims[1]:
            raise ValueError(
                f'{stored[0]} and {other} hold other coordinates of the embeddings: '
                f'{" and ".join(f"the first {dim}" if dim else "all" for dim in dims)}; write both '
                'with the same --dim of clip-jax embed'
            )


def card_hash(card: Mapping[str, Any] | None) -> str:
    """Returns 32 hexadecimal digits that identify a card, or a part of one."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:32]
