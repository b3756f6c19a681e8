"""The similarity matrix as one array; on a mesh its rows are sharded as the batch is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from clip_jax.losses import _texts


class Matrix(NamedTuple):
    """Logits of B images and the K texts of each; the first P of the K are captions."""

    logits: jax.Array  # float32 [B, B, K]
    is_negative: jax.Array  # bool [B, B, K]; False for positives and what is masked
    positive: jax.Array  # float32 [B, P], logits of the images with their own captions
    valid: jax.Array  # bool [B, 1]; False: masked


def matrix(
    image: jax.Array,
    text: jax.Array,
    negatives: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> Matrix:
    """Computes all logits; the arguments are those of a loss."""
    texts, positives = _texts.join(image, text, negatives)
    image, texts = image.astype(jnp.float32), texts.astype(jnp.float32)
    count, of_each, _ = texts.shape
    columns = texts.reshape(count * of_each, -1)
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    logits = scale * jnp.matmul(image, columns.T, precision=jax.lax.Precision.HIGHEST)
    logits = logits if bias is None else logits + bias
    # Before the reshape, XLA needs one temporary array less for its gradient.
    positive = [jnp.diagonal(logits[:, k::of_each]) for k in range(positives)]
    valid = jnp.ones(count, bool) if mask is None else mask
    is_caption = jnp.arange(of_each) < positives
    is_negative = ~(jnp.eye(count, dtype=bool)[..., None] & is_caption)
    return Matrix(
        logits.reshape(count, count, of_each),
        is_negative & valid[:, None, None] & valid[:, None],
        jnp.stack(positive, axis=1),
        valid[:, None],
    )


def accuracy(
    positive: jax.Array, over_texts: jax.Array, over_images: jax.Array, valid: jax.Array
) -> dict[str, jax.Array]:
    """Returns the fractions of positives, float32 [B, P], above the highest negatives of their
    images, [B, 1], and of their texts, [B, P].
    """
    return {
        'accuracy/image_to_text': jnp.mean(positive > over_texts, where=valid),
        'accuracy/text_to_image': jnp.mean(positive > over_images, where=valid),
    }
