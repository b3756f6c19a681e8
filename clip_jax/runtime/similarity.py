"""Exact cosine similarities.

Embeddings are rounded to multiples of 2^-26, by less than 1e-8; encoders have errors of 1e-7.
Products of two such numbers are multiples of 2^-52, and dot products of unit vectors stay between
-2 and 2, so that float64 holds every partial sum exactly. Equal embeddings then tie, and a
similarity is the same bit for bit in any block size, summation order and device, unlike in float32.
"""

import numpy as np

GRID = float(2**26)
CHUNK = 8192  # rows at a time


def on_grid(rows: np.ndarray) -> np.ndarray:
    """Rounds unit-length embeddings, float32 [N, D], so that their similarities are exact;
    ValueError if their length is not 1.
    """
    rows = np.array(rows, np.float32)
    rows *= GRID
    np.rint(rows, out=rows)
    rows /= GRID
    lengths = np.sqrt(np.einsum('nd,nd->n', rows, rows))
    if len(rows) and np.abs(lengths - 1).max() > 0.01:
        wrong = lengths[np.abs(lengths - 1).argmax()]
        raise ValueError(f'similarity: embeddings of length {wrong:.4g}; expected length 1')
    return rows


def unit(rows: np.ndarray) -> np.ndarray:
    """Scales rows [N, D] of any length to unit length and rounds them as `on_grid` does; each row
    gets the same numbers whatever the others are. ValueError if a length is 0 or not finite.
    """
    rows = np.asarray(rows, np.float64)
    lengths = np.sqrt(np.einsum('nd,nd->n', rows, rows))[:, None]
    if not ((lengths > 0) & np.isfinite(lengths)).all():
        raise ValueError('similarity: embeddings of length 0 or not finite; expected numbers')
    return on_grid(rows / lengths)


def matrix(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the similarities, float64 [N, M], of embeddings [N, D] and [M, D] of `on_grid`."""
    return rows.astype(np.float64) @ columns.astype(np.float64).T


def of_pairs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the similarities of pairs, float64 [N], of embeddings [N, D] and [N, D]."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        # As exact as `matrix`, hence equal to it.
        found[part] = np.einsum('nd,nd->n', rows[part], columns[part], dtype=np.float64)
    return found
