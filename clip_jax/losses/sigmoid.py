"""SigLIP's loss: binary cross-entropy of every combination of an image and a text."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.losses import _blockwise, _contrast, _dense

IMPLEMENTATIONS = _contrast.IMPLEMENTATIONS
INIT = {'init_logit_scale': math.log(10), 'init_logit_bias': -10.0}  # section 3.2


def loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    negatives: jax.Array | None = None,
    dims: Sequence[int] = (),
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = 'data',
    implementation: str | None = None,
    block_size: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    r"""Computes SigLIP's loss, ``-sum_ij log sigmoid(z_ij S_ij) / B``.

    ``S = scale * image @ text.T + bias``; ``z_ij`` is 1 for positives, i = j, and -1 for negatives.

    If an image has P positives, the sum is divided by their number, B P: the value of P equal
    captions is that of one.

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
            pair; all other combinations are negatives. Or [B, P, D]: `image[i]` has the positives
            `text[i, 0]` to `text[i, P - 1]`.
        scale: the inverse temperature, [].
        bias: added to all logits, []; None is 0. SigLIP's initial bias is -10, so that the many
            negatives do not dominate the first steps.
        mask: bool [B]; pairs where it is False, with their hard negatives, are neither positives
            nor negatives. None: all count.
        negatives: L2-normalized embeddings of N hard negatives of each image, such as captions with
            swapped words, float [B, N, D]; a negative of every image (NegCLIP).
        dims: lengths of prefixes of the embeddings, increasing, such as (64, 128, 256); the value
            is the mean of the losses of the L2-normalized prefixes (Matryoshka). (): the embeddings
            as they are.
        mesh: the device mesh, for the implementations 'gather' and 'ring'.
        axis: the mesh axis or axes that the batch is sharded over.
        implementation: 'dense', 'gather' or 'ring', see clip_jax/losses/__init__.py. None: 'gather'
            if there is a mesh, else 'dense'.
        block_size: the number of texts in a block of 'gather' and 'ring'.

    Returns:
        The loss, float32 [], and metrics: 'accuracy/image_to_text' and 'accuracy/text_to_image',
        the fraction of positives with a higher similarity than all negatives of their image and of
        their text; ties count as wrong. With `dims`, those of the whole embeddings.

    Raises:
        ValueError: if there is an unknown implementation, a batch that cannot be sharded, or shapes
            or dims that do not fit.

    References:
      Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv 2303.15343),
      algorithm 1.
      Yuksekgonul et al., When and Why Vision-Language Models Behave like Bags-of-Words, 2022
      (arXiv 2210.01936): hard negatives.
      Kusupati et al., Matryoshka Representation Learning, 2022 (arXiv 2205.13147).
    """
    return _contrast.contrast(
        _PAIRS,
        _from_matrix,
        image,
        text,
        negatives,
        scale,
        bias,
        mask=mask,
        dims=dims,
        mesh=mesh,
        axis=axis,
        implementation=implementation,
        block_size=block_size,
        what='losses/sigmoid',
    )


def _from_matrix(matrix: _dense.Matrix) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits, is_negative, positive, valid = matrix
    both = (valid & valid[:, 0])[..., None]
    losses = jax.nn.softplus(jnp.where(is_negative, logits, -logits))
    negatives = jnp.where(is_negative, logits, -jnp.inf)
    highest = negatives.max(axis=(1, 2))[:, None], negatives[..., : positive.shape[1]].max(axis=0)
    count = jnp.maximum(valid.sum(), 1) * positive.shape[1]
    return jnp.sum(losses, where=both) / count, _dense.accuracy(positive, *highest, valid)


def _finalize(
    positive: jax.Array, image: _blockwise.Statistics, text: _blockwise.Statistics
) -> tuple[jax.Array, ...]:
    """The summands of a pair's positive and of its image's negatives; those of its text belong to
    other images.
    """
    value = jax.nn.softplus(-positive) + image[1] / positive.shape[1]
    zero = jnp.zeros_like(positive)
    return value, -jax.nn.sigmoid(-positive), zero[:, 0], zero


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, maximum: jax.nn.softplus(logit),
    rescale=jnp.ones_like,
    finalize=_finalize,
    derivative=lambda logit, image, text: jax.nn.sigmoid(logit),
)
