"""What the contrastive losses share: from their arguments to one of the implementations."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from clip_jax import lookup
from clip_jax.losses import _blockwise, _dense, _texts

IMPLEMENTATIONS = ('dense', *_blockwise.IMPLEMENTATIONS)


def contrast(
    pairs: _blockwise.PairLoss,
    from_matrix: Callable[[_dense.Matrix], tuple[jax.Array, dict[str, jax.Array]]],
    image: jax.Array,
    text: jax.Array,
    negatives: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array | None,
    *,
    mask: jax.Array | None,
    dims: Sequence[int],
    mesh: Mesh | None,
    axis: str | tuple[str, ...],
    implementation: str | None,
    block_size: int,
    what: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a contrastive loss.

    Args:
        pairs: the loss block by block.
        from_matrix: the loss of all logits at once.
        image, text, negatives, scale, bias, mask, dims, mesh, axis, implementation, block_size: the
            arguments of a loss; see __init__.py.
        what: what messages call the loss.

    Returns:
        The loss, float32 [], and its metrics.

    Raises:
        ValueError: an unknown implementation, or shapes or dims that do not fit.
    """
    if implementation is None:
        implementation = 'dense' if mesh is None else 'gather'
    lookup.check(implementation, IMPLEMENTATIONS, what=f'{what}: implementation')
    layout = _blockwise.Layout(implementation, mesh, axis, block_size)

    def one(
        image: jax.Array, text: jax.Array, negatives: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if implementation == 'dense':
            return from_matrix(_dense.matrix(image, text, negatives, scale, bias, mask))
        return _blockwise.contrast(pairs, layout, image, text, negatives, scale, bias, mask)

    return _texts.over_dims(one, dims, image, text, negatives)
