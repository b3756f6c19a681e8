"""SigLIP's loss: binary cross-entropy of every combination of an image and a text."""

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
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = 'data',
    implementation: str | None = None,
    block_size: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    r"""Computes SigLIP's loss, ``-sum_ij log sigmoid(z_ij S_ij) / B``.

    ``S = scale * image @ text.T + bias``; ``z_ij`` is 1 for positives, i = j, and -1 for negatives.

    Example:
        >>> import jax.numpy as jnp
        >>> from clip_jax.losses import sigmoid
        >>> image = text = jnp.eye(3)
        >>> value, _ = sigmoid.loss(image, text, scale=jnp.float32(10), bias=jnp.float32(-5))
        >>> print(f'{value:.4f}')
        0.0201

    Args:
        image: L2-normalized image embeddings of the global batch, float [B, D].
        text: L2-normalized text embeddings, float [B, D]. `image[i]` and `text[i]` are a positive
            pair; all other combinations are negatives.
        scale: the inverse temperature, [].
        bias: added to all logits, []; None is 0. SigLIP's initial bias is -10, so that the many
            negatives do not dominate the first steps.
        mask: bool [B]; pairs where it is False are neither positives nor negatives. None: all
            count.
        mesh: the device mesh, for the implementations 'gather' and 'ring'.
        axis: the mesh axis or axes that the batch is sharded over.
        implementation: 'dense', 'gather' or 'ring', see clip_jax/losses/__init__.py. None: 'gather'
            if there is a mesh, else 'dense'.
        block_size: the number of texts in a block of 'gather' and 'ring'.

    Returns:
        The loss, float32 [], and metrics: 'accuracy/image_to_text' and 'accuracy/text_to_image',
        the fraction of embeddings whose positive has the highest similarity; ties count as wrong.

    Raises:
        ValueError: if there is an unknown implementation, or a batch that cannot be sharded.

    References:
      Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv 2303.15343),
      algorithm 1.
    """
    if implementation is None:
        implementation = 'dense' if mesh is None else 'gather'
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
    """The similarity matrix as one array; on a mesh its rows are sharded as the batch is."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    valid = jnp.ones(len(image), bool) if mask is None else mask
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse.
    logits = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    logits = logits if bias is None else logits + bias
    positive, is_positive = jnp.diagonal(logits), jnp.eye(len(image), dtype=bool)
    both = valid[:, None] & valid
    losses = jax.nn.softplus(jnp.where(is_positive, -logits, logits))
    negatives = jnp.where(both & ~is_positive, logits, -jnp.inf)
    return jnp.sum(losses, where=both) / jnp.maximum(valid.sum(), 1), {
        'accuracy/image_to_text': jnp.mean(positive > negatives.max(axis=1), where=valid),
        'accuracy/text_to_image': jnp.mean(positive > negatives.max(axis=0), where=valid),
    }


def _finalize(
    positive: jax.Array, image: _blockwise.Statistics, text: _blockwise.Statistics
) -> tuple[jax.Array, ...]:
    """The summands of a pair's positive and of its image's negatives; those of its text belong to
    other images.
    """
    value = jax.nn.softplus(-positive) + image[1]
    zero = jnp.zeros_like(positive)
    return value, -jax.nn.sigmoid(-positive), zero, zero


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, maximum: jax.nn.softplus(logit),
    rescale=jnp.ones_like,
    finalize=_finalize,
    derivative=lambda logit, image, text: jax.nn.sigmoid(logit),
)
