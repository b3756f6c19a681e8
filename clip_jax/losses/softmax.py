"""CLIP's loss: symmetric cross-entropy over the similarities of all images with all texts (arXiv
2103.00020, figure 3).
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import lookup


def loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    implementation: str = 'dense',
    mesh: Mesh | None = None,
    axis: str = 'data',
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean of cross_entropy(S, i) and cross_entropy(S^T, i) with S = scale * image @
    text^T.

    `image` and `text` are unit rows [B, D] of the global batch; row i of both belongs together. A
    bias, the same for all similarities, cannot change a softmax and is refused. Metrics: each
    direction's share of rows whose partner scores highest (ties count as wrong).
    """
    if bias is not None:
        raise ValueError(
            'losses/softmax: a bias cancels out of the softmax; use the loss "sigmoid"'
        )
    lookup.check(implementation, IMPLEMENTATIONS, what='losses/softmax: implementation')
    return IMPLEMENTATIONS[implementation](image, text, scale)


def _dense(
    image: jax.Array, text: jax.Array, scale: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole similarity matrix as one array; on a mesh, each device holds its rows of it."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    similarity = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    partner = jnp.diagonal(similarity)
    over_texts = jax.nn.logsumexp(similarity, axis=1)
    over_images = jax.nn.logsumexp(similarity, axis=0)
    value = jnp.mean((over_texts + over_images) / 2 - partner)
    rivals = jnp.where(jnp.eye(len(image), dtype=bool), -jnp.inf, similarity)
    return value, {
        'accuracy/image_to_text': jnp.mean(partner > rivals.max(axis=1)),
        'accuracy/text_to_image': jnp.mean(partner > rivals.max(axis=0)),
    }


IMPLEMENTATIONS = {'dense': _dense}
