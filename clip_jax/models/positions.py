"""Positions of an image's patches: fixed ones, and learned ones for another number of patches."""

import math

import jax
import jax.numpy as jnp


def sincos2d(grid: int, width: int) -> jax.Array:
    """Sines and cosines of each patch's column and row at width / 4 frequencies: [grid^2, width].

    Wavelengths from 2 pi to 20,000 pi patches (arXiv 1706.03762, section 3.5, in two dimensions).
    """
    frequency = 10_000.0 ** -jnp.linspace(0, 1, width // 4)
    row, column = jnp.divmod(jnp.arange(grid * grid), grid)
    angles = [place[:, None] * frequency for place in (column, row)]
    return jnp.concatenate([f(angle) for angle in angles for f in (jnp.sin, jnp.cos)], axis=1)


def resized(table: jax.Array, grid: int, *, tokens: int) -> jax.Array:
    """Interpolates learned positions [tokens + n^2, width] to [tokens + grid^2, width].

    The first `tokens` rows belong to tokens that are no patches, and stay. Bicubic with
    antialiasing, as in open_clip (Hugging Face's transformers leave the antialiasing out, which
    differs where the grid shrinks; ViT, arXiv 2010.11929, section 3.2, names the method).
    """
    table = jnp.asarray(table)
    old, width = math.isqrt(len(table) - tokens), table.shape[1]
    if old == grid:
        return table
    patches = table[tokens:].reshape(old, old, width)
    patches = jax.image.resize(patches, (grid, grid, width), 'bicubic', antialias=True)
    return jnp.concatenate([table[:tokens], patches.reshape(-1, width)])
