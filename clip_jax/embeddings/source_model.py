"""Loads the model that a folder of embeddings was made with."""

import functools

from clip_jax import pretrained
from clip_jax.data.embedding_store import Embeddings
from clip_jax.embeddings.identity import card_hash
from clip_jax.models.fingerprint import fingerprint
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
def _load(path: str, expected: str, card: str, folder: str, dtype: str) -> Clip:
    advice = 'give the model that made it as --model=PATH, or model=PATH in Python'
    try:
        clip = pretrained.load(path, dtype=dtype)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{folder}: texts or images must be embedded, and its model cannot be loaded from '
            f'{path} ({error}); {advice}'
        ) from error
    if (fingerprint(clip.variables), card_hash(clip.card)) != (expected, card):
        raise ValueError(
            f'{folder}: texts or images must be embedded, and {path} holds another model now; '
            f'{advice}'
        )
    return clip
