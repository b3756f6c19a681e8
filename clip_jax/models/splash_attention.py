"""Attention of long sequences on TPU: JAX's splash attention, which holds blocks of logits only.

Queries and keys are padded to whole blocks; padding and masked keys are in a segment of their own.
"""

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

NAME = 'splash_attention'  # of the outputs of the forward kernel, for rematerialization
BLOCKS = 768, 640, 512  # tokens; multiples of the 128 lanes of a tile; 1,024 do not fit v4
MOST_HEAD_DIM = 128  # with 256, blocks of float32 do not fit v5p's vector memory
PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}  # of queries and keys, or of their size, by kernel


def refusal(query: Any) -> str | None:
    """Says why `attend` does not take queries; None: it does."""
    if query.shape[-1] > MOST_HEAD_DIM:
        return f'heads of {query.shape[-1]}; expected up to {MOST_HEAD_DIM}'
    return None


def flops(kernel: str, operands: Iterable[Any]) -> int:
    """FLOPs of the products that a kernel of JAX's stands for, which does not state them.

    Args:
        kernel: its name; of others than those of splash attention, it is 0.
        operands: with their shapes and dtypes; the first two of floats are queries and keys.
    """
    name = re.match(r'splash_mha_([a-z]+)_', kernel)
    if not name:
        return 0
    query, key = [x.shape for x in operands if re.match('b?f', str(x.dtype))][:2]
    return 2 * PRODUCTS[name[1]] * math.prod(query) * key[-2]


def attend(
    spec: PartitionSpec,
    platform: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    shown: jax.Array | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """Computes attention.attend with JAX's kernels, with gradients of first order in reverse mode.

    Args:
        spec: how the arrays are sharded on the mesh of `jax.set_mesh`.
        platform: the kind of device; kernels are interpreted on others than 'tpu'.
        query: [B, L, heads, head_dim].
        key: [B, L, heads, head_dim].
        value: [B, L, heads, head_dim].
        shown: bool, [B, L]; True: queries attend to the key.
        causal: whether a query attends only to keys at its own and earlier positions.

    Returns:
        [B, L, heads, head_dim].
    """
    arrays = [query * query.shape[-1] ** -0.5, key, value]
    arrays += [] if shown is None else [shown]
    call = functools.partial(_call, platform, causal)
    if spec and jax.sharding.get_abstract_mesh().size > 1:
        specs = (spec, spec, spec, PartitionSpec(spec[0]))[: len(arrays)]
        call = jax.shard_map(call, in_specs=specs, out_specs=spec, check_vma=False)
    out = call(*arrays)
    if shown is None:
        return out
    # As in the plain form, a query that sees no key attends to all alike.
    seen = shown.cumsum(1) > 0 if causal else shown.any(1, keepdims=True)
    return jnp.where(seen[:, :, None, None], out, value.mean(1, keepdims=True))


def _call(
    platform: str, causal: bool, query: Any, key: Any, value: Any, shown: Any = None
) -> jax.Array:
    """Calls the kernels on the arrays of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, _ = query.shape
    block = min(BLOCKS, key=lambda block: -length % block)
    pad = -length % block
    query, key, value = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (query, key, value)
    )
    # Without a mask no query sees the padding behind it if it sees only what is before it.
    if shown is None and pad and not causal:
        shown = jnp.ones((len(query), length), bool)
    segments = None
    if shown is not None:
        keys = jnp.pad(shown, ((0, 0), (0, pad))).astype(jnp.int32)
        segments = splash.SegmentIds(jnp.ones_like(keys), keys)
    mask = splash.CausalMask if causal else splash.FullMask
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask((length + pad, length + pad))] * heads),
        block_sizes=splash.BlockSizes(block, block, block, block, block, block, block, block),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=NAME,
        interpret=platform != 'tpu',
    )
    out: Any = jax.vmap(kernel)(query, key, value, segments)
    return out[:, :, :length].swapaxes(1, 2)
