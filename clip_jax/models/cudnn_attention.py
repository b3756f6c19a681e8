"""cuDNN's fused attention on CUDA GPUs, for any number of tokens and any mask."""

from typing import Any

import jax
import jax.numpy as jnp

MOST_HEAD_DIM = 128
# The primitive whose outputs the backward pass needs; see layers.REMAT.
FORWARD = 'dot_product_attention_fwd_wrapper'
# Products of queries and keys, or of their size, by primitive.
PRODUCTS = {FORWARD: 2, 'dot_product_attention_bwd_wrapper': 5}


def refusal(query: jax.Array) -> str | None:
    """Says why `attend` does not take queries; None: it does."""
    if query.dtype.itemsize != 2:
        return f'inputs in {query.dtype}; expected bfloat16 or float16'
    if query.shape[-1] % 8 or query.shape[-1] > MOST_HEAD_DIM:
        return f'heads of {query.shape[-1]}; expected a multiple of 8 up to {MOST_HEAD_DIM}'
    return None


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """Scaled dot-product attention by cuDNN, bfloat16 or float16.

    cuDNN's backward pass takes even numbers of tokens only, so that odd ones are padded by one.

    Args:
        query: [B, Lq, heads, head_dim].
        key: [B, Lk, heads, head_dim].
        value: [B, Lk, heads, head_dim].
        mask: bool, broadcastable to [B, heads, Lq, Lk]; True: the query attends to the key.
        causal: whether a query attends only to keys at its own and earlier positions.

    Returns:
        [B, Lq, heads, head_dim].
    """
    batch, (queries, keys) = query.shape[0], (query.shape[1], key.shape[1])
    options: dict[str, Any] = {'is_causal': causal, 'implementation': 'cudnn'}
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:-2], queries, keys))
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
        # Nobody attends to padding; a query of padding attends to what the last one does.
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, keys % 2)))
        options['mask'] = jnp.pad(mask, ((0, 0), (0, 0), (0, queries % 2), (0, 0)), mode='edge')
    elif keys % 2 and not causal:
        options['query_seq_lengths'] = jnp.full(batch, queries, jnp.int32)
        options['key_value_seq_lengths'] = jnp.full(batch, keys, jnp.int32)
    out = jax.nn.dot_product_attention(_even(query), _even(key), _even(value), **options)
    return out[:, :queries]


def _even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
