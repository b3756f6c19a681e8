"""A hash of the variables of a model."""

import hashlib
from typing import Any

import jax
import numpy as np

from clip_jax import sharding


def fingerprint(variables: dict[str, Any]) -> str:
    """Returns a hash of variables (names, dtypes, shapes, bytes) as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{sharding.path_name(path)} {array.dtype} {array.shape};'.encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:32]
