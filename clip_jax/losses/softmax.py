"""CLIP's loss: symmetric softmax cross-entropy over the similarities of images and texts."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import lookup
from clip_jax.losses import _blockwise
from clip_jax.models.clip import INIT_LOGIT_SCALE

IMPLEMENTATIONS = ('dense', *_blockwise.IMPLEMENTATIONS)
INIT = {'init_logit_scale': INIT_LOGIT_SCALE, 'init_logit_bias': None}


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
    r"""Computes CLIP's loss, the mean over i of ``(CE(S, i) + CE(S^T, i)) / 2``.

    ``S = scale * image @ text.T``, and ``CE(S, i) = -log(exp(S_ii) / sum_j exp(S_ij))`` is the
    cross-entropy of row i, whose positive is column i.

    Example:
        >>> import jax.numpy as jnp
        >>> from clip_jax.losses import softmax
        >>> image = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> text = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> value, metrics = softmax.loss(image, text, scale=jnp.float32(10))
        >>> print(f'{value:.4f}')
        0.6207
        >>> print(f"{metrics['accuracy/image_to_text']:.4f}")
        0.3333

    Args:
        image: L2-normalized image embeddings of the global batch, float [B, D].
        text: L2-normalized text embeddings, float [B, D]. `image[i]` and `text[i]` are a positive
            pair; all other combinations are negatives.
        scale: the inverse temperature, [].
        bias: must be None. The same number added to all logits does not change a softmax.
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
        ValueError: if there is a bias, an unknown implementation, or a batch that cannot be
            sharded.

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
      (arXiv 2103.00020), figure 3.
    """
    if bias is not None:
        raise ValueError(
            'losses/softmax: a bias cancels out of the softmax; use the loss "sigmoid"'
        )
    if implementation is None:
        implementation = 'dense' if mesh is None else 'gather'
    lookup.check(implementation, IMPLEMENTATIONS, what='losses/softmax: implementation')
    if implementation == 'dense':
        return _dense(image, text, scale, mask)
    layout = _blockwise.Layout(implementation, mesh, axis, block_size)
    return _blockwise.contrast(_PAIRS, layout, image, text, scale, None, mask)


def _dense(
    image: jax.Array, text: jax.Array, scale: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The similarity matrix as one array; on a mesh its rows are sharded as the batch is."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    valid = jnp.ones(len(image), bool) if mask is None else mask
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    similarity = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    positive = jnp.diagonal(similarity)
    is_negative = valid[:, None] & valid & ~jnp.eye(len(image), dtype=bool)
    # Not -inf: for a single pair, which has no negatives, the gradient would be NaN.
    negatives = jnp.where(is_negative, similarity, _blockwise.LOWEST)
    # Cross-entropy is log(1 + sum of negatives / positive), which in this form is exact near 0.
    over_texts = jax.nn.softplus(jax.nn.logsumexp(negatives, axis=1) - positive)
    over_images = jax.nn.softplus(jax.nn.logsumexp(negatives, axis=0) - positive)
    return jnp.mean((over_texts + over_images) / 2, where=valid), {
        'accuracy/image_to_text': jnp.mean(positive > negatives.max(axis=1), where=valid),
        'accuracy/text_to_image': jnp.mean(positive > negatives.max(axis=0), where=valid),
    }


def _finalize(
    positive: jax.Array, image: _blockwise.Statistics, text: _blockwise.Statistics
) -> tuple[jax.Array, ...]:
    """Cross-entropy in both directions; the normalizers are log-sum-exp over a row and a column."""
    # A single pair has no negatives: their sum is 0 and its logarithm -inf.
    of_image, of_text = (maximum + jnp.log(total) for maximum, total in (image, text))
    value = (jax.nn.softplus(of_image - positive) + jax.nn.softplus(of_text - positive)) / 2
    slope = -(jax.nn.sigmoid(of_image - positive) + jax.nn.sigmoid(of_text - positive)) / 2
    return value, slope, jnp.logaddexp(of_image, positive), jnp.logaddexp(of_text, positive)


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, maximum: jnp.exp(logit - maximum),
    rescale=jnp.exp,
    finalize=_finalize,
    derivative=lambda logit, image, text: (jnp.exp(logit - image) + jnp.exp(logit - text)) / 2,
)
