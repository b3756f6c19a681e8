"""What text encoders share that mask padding: positions of tokens, dropout, and pooling."""

import jax
import jax.numpy as jnp

from clip_jax.models import layers


def positions(is_text: jax.Array, pad_id: int) -> jax.Array:
    """Numbers tokens as fairseq does: from pad_id + 1, and padding is at pad_id.

    Args:
        is_text: bool [B, L]; False: padding.
        pad_id: the id of the padding token.

    Returns:
        int32 [B, L]
    """
    return jnp.cumsum(is_text, axis=1) * is_text + pad_id


def mean(x: jax.Array, is_text: jax.Array) -> jax.Array:
    """Averages the features of tokens that are not padding: [B, L, width] -> [B, width].

    Args:
        x: features.
        is_text: bool [B, L]; False: padding.
    """
    count = jnp.maximum(is_text.sum(axis=1, keepdims=True), 1)
    total = jnp.sum(jnp.where(is_text[..., None], x, 0), axis=1, dtype=jnp.float32)
    return (total / count).astype(x.dtype)


def mask(is_text: jax.Array) -> jax.Array:
    """Returns the attention mask that hides padding: bool [B, 1, 1, L]."""
    return is_text[:, None, None]


def dropout(x: jax.Array, rate: float, keys: jax.Array | None, depth: int) -> jax.Array:
    """Applies dropout to embedded tokens.

    Args:
        x: embedded tokens [B, L, width].
        rate: probability that a value is set to 0.
        keys: random keys [B]; None: no dropout.
        depth: the number of blocks, which fold in smaller numbers.
    """
    own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, depth)
    return layers.dropout(x, rate, own)
