"""Cosine similarities without rounding, and how many of them are large.

Rows are rounded to multiples of 2^-26: by less than 1e-8, where encoders are off by 1e-7. Products
of two such numbers are multiples of 2^-52, and sums of products of unit rows stay between -2 and 2,
so that float64 holds every partial sum exactly. Whatever the order in which a library adds, in
blocks of any size and on any device, the same rows give the same similarity to the last bit, and
equal rows tie. A sum in float32 depends on all of that.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.evals import _embed

GRID = float(2**26)
COLUMNS = 8192  # of a tile of similarities; as high as a chunk of rows
GPU_ROWS = 8192


def on_grid(rows: np.ndarray) -> np.ndarray:
    """Returns unit rows [N, D], float32, rounded so that their similarities are exact; ValueError
    if their length is not 1.
    """
    rows = np.array(rows, np.float32)
    rows *= GRID
    np.rint(rows, out=rows)
    rows /= GRID
    lengths = np.sqrt(np.einsum('nd,nd->n', rows, rows))
    if len(rows) and np.abs(lengths - 1).max() > 0.01:
        wrong = lengths[np.abs(lengths - 1).argmax()]
        raise ValueError(f'evals: embeddings of length {wrong:.4g}; expected rows of length 1')
    return rows


def matrix(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The similarities of all rows [N, D] and columns [M, D] of `on_grid`: float64 [N, M]."""
    return rows.astype(np.float64) @ columns.astype(np.float64).T


def of_pairs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The similarities of each row with the column of its place: float64 [N]."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), COLUMNS):
        part = slice(start, start + COLUMNS)
        # As exact as `matrix`: a product is the same number here and there.
        found[part] = np.einsum('nd,nd->n', rows[part], columns[part], dtype=np.float64)
    return found


def count_at_least(
    rows: np.ndarray, columns: np.ndarray, of_rows: np.ndarray, of_columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each row, how many columns are at least as similar as `of_rows` says, int [N]; and for
    each column, how many rows are, int [M].

    The matrix is made tile by tile, on a GPU if there is one (in float64, which TPUs lack).
    """
    over_rows, over_columns = np.zeros(len(rows), np.int64), np.zeros(len(columns), np.int64)
    with _counter() as (count, size):
        for chunk in _embed.chunks(range(len(rows)), unit='row', size=size):
            some = slice(chunk.start, chunk.stop)
            for start in range(0, len(columns), COLUMNS):
                part = slice(start, start + COLUMNS)
                found = count(rows[some], columns[part], of_rows[some], of_columns[part])
                over_rows[some] += found[0]
                over_columns[part] += found[1]
    return over_rows, over_columns


@contextlib.contextmanager
def _counter() -> Iterator[tuple]:
    """What counts in a tile, and how many rows it has; on CPU NumPy is faster than XLA."""
    if jax.default_backend() != 'gpu':
        yield _count, _embed.CHUNK
        return
    with jax.enable_x64(True):
        yield _count_on_device, GPU_ROWS


def _count(rows, columns, of_rows, of_columns, xp=np):
    similarity = rows.astype(xp.float64) @ columns.astype(xp.float64).T
    return (
        xp.count_nonzero(similarity >= of_rows[:, None], axis=1),
        xp.count_nonzero(similarity >= of_columns[None, :], axis=0),
    )


_count_on_device = jax.jit(lambda *arrays: _count(*arrays, xp=jnp))
