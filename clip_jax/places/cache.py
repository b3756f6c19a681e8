"""Where downloads that are not huggingface_hub's are kept."""

import hashlib
import pathlib

from clip_jax.runtime import environment


def folder(kind: str, address: str) -> pathlib.Path:
    """Returns the folder of an address in the user's cache; `kind` is that of the places."""
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    return pathlib.Path(environment.cache_folder(kind)) / key
