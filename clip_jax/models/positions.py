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


def resized(table: jax.Array, grid: int, *, tokens: int) -> jax.Array:
    """Interpolates learned position embeddings to another number of patches.

    Bicubic with antialiasing, as in open_clip. Hugging Face's transformers do not antialias, which
    differs where the grid shrinks.

    Args:
        table: position embeddings [tokens + n^2, width].
        grid: patches along each side of the new image.
        tokens: the number of tokens at the start that are not patches; theirs do not change.

    Returns:
        [tokens + grid^2, width]

    Source: ViT (arXiv 2010.11929), section 3.2.
    """
    table = jnp.asarray(table)
    old, width = math.isqrt(len(table) - tokens), table.shape[1]
    if old == grid:
        return table
    patches = table[tokens:].reshape(old, old, width)
    patches = jax.image.resize(patches, (grid, grid, width), 'bicubic', antialias=True)
    return jnp.concatenate([table[:tokens], patches.reshape(-1, width)])
