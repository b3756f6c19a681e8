"""Position embeddings of patches: fixed ones, and interpolation of learned ones."""

import math

import jax
import jax.numpy as jnp


def sincos2d(grid: int, width: int) -> jax.Array:
    """Returns two-dimensional sine-cosine position embeddings (MoCo v3's, arXiv 2104.02057).

    Wavelengths are from 2 pi to 20,000 pi patches (arXiv 1706.03762, section 3.5, in two
    dimensions).

    Args:
        grid: patches along each side of the image.
        width: features; a multiple of 4, for sine and cosine of column and row.

    Returns:
        float32 [grid^2, width]
    """
    frequency = 10_000.0 ** -jnp.linspace(0, 1, width // 4)
    row, column = jnp.divmod(jnp.arange(grid * grid), grid)
    angles = [place[:, None] * frequency for place in (column, row)]
    return jnp.concatenate([f(angle) for angle in angles for f in (jnp.sin, jnp.cos)], axis=1)


def resized(table: jax.Array, grid: int, *, tokens: int, method: str = 'bicubic') -> jax.Array:
    """Interpolates learned position embeddings to another number of patches.

    With antialiasing, and bicubic as in open_clip unless another method is given. Hugging Face's
    transformers do not antialias, which differs where the grid shrinks.

    Args:
        table: position embeddings [tokens + n^2, width].
        grid: patches along each side of the new image.
        tokens: the number of tokens at the start that are not patches; theirs do not change.
        method: of `jax.image.resize`.

    Returns:
        [tokens + grid^2, width]

    Source: ViT (arXiv 2010.11929), section 3.2.
    """
    table = jnp.asarray(table)
    old, width = math.isqrt(len(table) - tokens), table.shape[1]
    if old == grid:
        return table
    patches = table[tokens:].reshape(old, old, width)
    patches = jax.image.resize(patches, (grid, grid, width), method, antialias=True)
    return jnp.concatenate([table[:tokens], patches.reshape(-1, width)])


def interpolated(table: jax.Array, grid: jax.Array, length: int) -> jax.Array:
    """Interpolates learned position embeddings to the grid of each image of a batch.

    Bilinear with antialiasing, row and column on their own, as SigLIP 2 was trained. The grids are
    data, so that one compiled program serves all of them.

    Args:
        table: position embeddings [n^2, width].
        grid: int32 [B, 2], rows and columns of patches.
        length: the number of tokens; after rows * columns of them there is padding, which has the
            embedding of the first patch.

    Returns:
        [B, length, width], of the table's dtype.

    Source: SigLIP 2 (arXiv 2502.14786), section 2.4.2.
    """
    side = math.isqrt(len(table))
    grid = jnp.maximum(grid, 1)  # padding of a batch has no patches
    place = jnp.arange(length)
    place = jnp.where(place < grid.prod(axis=1, keepdims=True), place, 0)
    row, column = jnp.divmod(place, grid[:, 1:])
    rows, columns = (
        _weights(at, count[:, None], side)
        for at, count in ((row, grid[:, 0]), (column, grid[:, 1]))
    )
    weights = (rows[..., :, None] * columns[..., None, :]).reshape(*place.shape, -1)
    found = jnp.matmul(weights, table.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return found.astype(table.dtype)


def _weights(place: jax.Array, count: jax.Array, side: int) -> jax.Array:
    """The weights of `side` positions along an axis for the `place` among `count`: [..., side]."""
    scale = side / count.astype(jnp.float32)
    center = ((place + 0.5) * scale - 0.5)[..., None]
    # A triangle, as wide as the step between two places if that is more than one position.
    distance = jnp.abs(jnp.arange(side) - center) / jnp.maximum(scale, 1)[..., None]
    weights = jnp.maximum(1 - distance, 0)
    return weights / weights.sum(axis=-1, keepdims=True)
