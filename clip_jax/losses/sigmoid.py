"""SigLIP's loss: of every combination of an image and a text, whether they belong together (arXiv
2303.15343, algorithm 1).
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import lookup
from clip_jax.losses import _blockwise

IMPLEMENTATIONS = ('dense', *_blockwise.IMPLEMENTATIONS)
INIT = {'init_logit_scale': math.log(10), 'init_logit_bias': -10.0}  # section 3.2


def loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    implementation: str = 'dense',
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = 'data',
    block_size: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the sum over all i, j of -log sigmoid(z_ij S_ij), divided by the number of pairs; S =
    scale * image @ text^T + bias, and z is 1 for pairs, -1 for the rest.

    `image` and `text` are unit rows [B, D] of the global batch; row i of both belongs together.
    Pairs where `mask`, bool [B], is false are left out. Without a bias it is 0; SigLIP begins
    with -10, so that the many negatives do not outweigh all else. Metrics: each direction's share
    of rows whose partner scores highest (ties count as wrong).
    """
    lookup.check(implementation, IMPLEMENTATIONS, what='losses/sigmoid: implementation')
    if implementation == 'dense':
        return _dense(image, text, scale, bias, mask)
    layout = _blockwise.Layout(implementation, mesh, axis, block_size)
    return _blockwise.contrast(_PAIRS, layout, image, text, scale, bias, mask)


def _dense(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """All similarities as one array; on a mesh, each device holds its rows of it."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    valid = jnp.ones(len(image), bool) if mask is None else mask
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse.
    logits = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    logits = logits if bias is None else logits + bias
    partner, own = jnp.diagonal(logits), jnp.eye(len(image), dtype=bool)
    both = valid[:, None] & valid
    losses = jax.nn.softplus(jnp.where(own, -logits, logits))
    rivals = jnp.where(both & ~own, logits, -jnp.inf)
    return jnp.sum(losses, where=both) / jnp.maximum(valid.sum(), 1), {
        'accuracy/image_to_text': jnp.mean(partner > rivals.max(axis=1), where=valid),
        'accuracy/text_to_image': jnp.mean(partner > rivals.max(axis=0), where=valid),
    }


def _settle(partner, image, text):
    """The pair's own summand, and its image's rivals'; those of its text are other images'."""
    value = jax.nn.softplus(-partner) + image[1]
    zero = jnp.zeros_like(partner)
    return value, -jax.nn.sigmoid(-partner), zero, zero


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, top: jax.nn.softplus(logit),
    rescale=jnp.ones_like,
    settle=_settle,
    slope=lambda logit, image, text: jax.nn.sigmoid(logit),
)
