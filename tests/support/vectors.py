"""Vectors for tests of embeddings."""

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows at unit length, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
