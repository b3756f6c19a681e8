"""Counts of exact cosine similarities above a threshold (see runtime/similarity.py)."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.evals import _embed
from clip_jax.runtime.similarity import matrix as matrix
from clip_jax.runtime.similarity import of_pairs as of_pairs
from clip_jax.runtime.similarity import on_grid as on_grid

COLUMNS = 8192  # of a tile of the similarity matrix
GPU_ROWS = 8192


def count_at_least(
    rows: np.ndarray, columns: np.ndarray, of_rows: np.ndarray, of_columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts large similarities by row and by column.

    The matrix is computed in tiles, on a GPU if there is one (in float64, which TPUs lack).

    Args:
        rows: embeddings [N, D] of `on_grid`.
        columns: embeddings [M, D] of `on_grid`.
        of_rows: thresholds [N].
        of_columns: thresholds [M].

    Returns:
        For each row, the number of columns with at least the row's threshold, int [N]; and for each
        column, the number of rows with at least the column's, int [M].
    """
    over_rows, over_columns = np.zeros(len(rows), np.int64), np.zeros(len(columns), np.int64)
    with _counter() as (count, size):
        for chunk in _embed.chunks(range(len(rows)), unit='row', size=size):
            some = slice(chunk[0], chunk[-1] + 1)
            for start in range(0, len(columns), COLUMNS):
                part = slice(start, start + COLUMNS)
                found = count(rows[some], columns[part], of_rows[some], of_columns[part])
                over_rows[some] += found[0]
                over_columns[part] += found[1]
    return over_rows, over_columns


@contextlib.contextmanager
def _counter() -> Iterator[tuple]:
    """The function that counts in a tile, and the tile's rows; on CPU NumPy is faster than XLA."""
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
