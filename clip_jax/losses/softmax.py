"""CLIP's loss: symmetric softmax cross-entropy over the similarities of images and texts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.losses import _blockwise, _contrast, _dense
from clip_jax.models.clip import INIT_LOGIT_SCALE

IMPLEMENTATIONS = _contrast.IMPLEMENTATIONS
INIT = {'init_logit_scale': INIT_LOGIT_SCALE, 'init_logit_bias': None}


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
    r"""Computes CLIP's loss, the mean over i of ``(CE(S, i) + CE(S^T, i)) / 2``.

    ``S = scale * image @ text.T``, and ``CE(S, i) = -log(exp(S_ii) / sum_j exp(S_ij))`` is the
    cross-entropy of row i, whose positive is column i. If an image has several positives, the value
    is the mean over all pairs: the cross-entropy of an image and one of its positives leaves out
    the other ones, and that of a text is over all images.

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
            pair; all other combinations are negatives. Or [B, P, D]: `image[i]` has the positives
            `text[i, 0]` to `text[i, P - 1]`.
        scale: the inverse temperature, [].
        bias: must be None. The same number added to all logits does not change a softmax.
        mask: bool [B]; pairs where it is False, with their hard negatives, are neither positives
            nor negatives. None: all count.
        negatives: L2-normalized embeddings of N hard negatives of each image, such as captions with
            swapped words, float [B, N, D]; more negatives of every image (NegCLIP). They are no
            rows of text -> image.
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
        ValueError: if there is a bias, an unknown implementation, a batch that cannot be sharded,
            or shapes or dims that do not fit.

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
      (arXiv 2103.00020), figure 3.
      Yuksekgonul et al., When and Why Vision-Language Models Behave like Bags-of-Words, 2022
      (arXiv 2210.01936): hard negatives.
      Kusupati et al., Matryoshka Representation Learning, 2022 (arXiv 2205.13147).
    """
    if bias is not None:
        raise ValueError(
            'losses/softmax: a bias cancels out of the softmax; use the loss "sigmoid"'
        )
    return _contrast.contrast(
        _PAIRS,
        _from_matrix,
        image,
        text,
        negatives,
        scale,
        None,
        mask=mask,
        dims=dims,
        mesh=mesh,
        axis=axis,
        implementation=implementation,
        block_size=block_size,
        what='losses/softmax',
    )


def _from_matrix(matrix: _dense.Matrix) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits, is_negative, positive, valid = matrix
    # Not -inf: for a single pair, which has no negatives, the gradient would be NaN.
    negatives = jnp.where(is_negative, logits, _blockwise.LOWEST)
    of_images = negatives.reshape(len(negatives), -1)
    of_texts = negatives[..., : positive.shape[1]]
    # Cross-entropy is log(1 + sum of negatives / positive), which in this form is exact near 0.
    over_texts = jax.nn.logsumexp(of_images, axis=1, keepdims=True)
    over_images = jax.nn.logsumexp(of_texts, axis=0)
    value = (jax.nn.softplus(over_texts - positive) + jax.nn.softplus(over_images - positive)) / 2
    highest = of_images.max(axis=1, keepdims=True), of_texts.max(axis=0)
    return jnp.mean(value, where=valid), _dense.accuracy(positive, *highest, valid)


def _finalize(
    positive: jax.Array, image: _blockwise.Statistics, text: _blockwise.Statistics
) -> tuple[jax.Array, ...]:
    """Cross-entropy in both directions; the normalizers are log-sum-exp over a row and a column.

    A negative of an image is in the cross-entropy of each of its positives; the image's normalizer
    is of the sum of their derivatives.
    """
    # A single pair has no negatives: their sum is 0 and its logarithm -inf.
    of_image, of_text = (maximum + jnp.log(total) for maximum, total in (image, text))
    value = (jax.nn.softplus(of_image - positive) + jax.nn.softplus(of_text - positive)) / 2
    slope = -(jax.nn.sigmoid(of_image - positive) + jax.nn.sigmoid(of_text - positive)) / 2
    over_texts = jnp.logaddexp(of_image, positive)
    over_positives = -jax.nn.logsumexp(-over_texts, axis=1)
    if positive.shape[1] == 1:
        over_positives = over_texts[:, 0]
    return value, slope, over_positives, jnp.logaddexp(of_text, positive)


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, maximum: jnp.exp(logit - maximum),
    rescale=jnp.exp,
    finalize=_finalize,
    derivative=lambda logit, image, text: (jnp.exp(logit - image) + jnp.exp(logit - text)) / 2,
)
