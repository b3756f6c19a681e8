"""CLIP's loss: symmetric cross-entropy over the similarities of all images with all texts (arXiv
2103.00020, figure 3).
"""

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
    implementation: str = 'dense',
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = 'data',
    block_size: int = 512,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean of cross_entropy(S, i) and cross_entropy(S^T, i) with S = scale * image @
    text^T.

    `image` and `text` are unit rows [B, D] of the global batch; row i of both belongs together.
    Pairs where `mask`, bool [B], is false are left out. A bias, the same for all similarities,
    cannot change a softmax and is refused. Metrics: each direction's share of rows whose partner
    scores highest (ties count as wrong).
    """
    if bias is not None:
        raise ValueError(
            'losses/softmax: a bias cancels out of the softmax; use the loss "sigmoid"'
        )
    lookup.check(implementation, IMPLEMENTATIONS, what='losses/softmax: implementation')
    if implementation == 'dense':
        return _dense(image, text, scale, mask)
    layout = _blockwise.Layout(implementation, mesh, axis, block_size)
    return _blockwise.contrast(_PAIRS, layout, image, text, scale, None, mask)


def _dense(
    image: jax.Array, text: jax.Array, scale: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole similarity matrix as one array; on a mesh, each device holds its rows of it."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    valid = jnp.ones(len(image), bool) if mask is None else mask
    # The default precision is bfloat16 on TPU and TF32 on GPU: too coarse for logits of up to 100.
    similarity = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    partner = jnp.diagonal(similarity)
    is_rival = valid[:, None] & valid & ~jnp.eye(len(image), dtype=bool)
    # Not -inf: of a single pair, without rivals, the gradient would be NaN.
    rivals = jnp.where(is_rival, similarity, _blockwise.LOWEST)
    # Cross-entropy is the logarithm of 1 + the rivals' sum / the partner: so it is exact near 0.
    over_texts = jax.nn.softplus(jax.nn.logsumexp(rivals, axis=1) - partner)
    over_images = jax.nn.softplus(jax.nn.logsumexp(rivals, axis=0) - partner)
    return jnp.mean((over_texts + over_images) / 2, where=valid), {
        'accuracy/image_to_text': jnp.mean(partner > rivals.max(axis=1), where=valid),
        'accuracy/text_to_image': jnp.mean(partner > rivals.max(axis=0), where=valid),
    }


def _settle(partner, image, text):
    """Cross-entropies from a pair's own logit and (largest, sum) of its rivals' both ways."""
    # One pair alone has no rivals: a sum of 0, whose logarithm is -inf.
    of_image, of_text = (top + jnp.log(rivals) for top, rivals in (image, text))
    value = (jax.nn.softplus(of_image - partner) + jax.nn.softplus(of_text - partner)) / 2
    slope = -(jax.nn.sigmoid(of_image - partner) + jax.nn.sigmoid(of_text - partner)) / 2
    return value, slope, jnp.logaddexp(of_image, partner), jnp.logaddexp(of_text, partner)


_PAIRS = _blockwise.PairLoss(
    term=lambda logit, top: jnp.exp(logit - top),
    rescale=jnp.exp,
    settle=_settle,
    slope=lambda logit, image, text: (jnp.exp(logit - image) + jnp.exp(logit - text)) / 2,
)
