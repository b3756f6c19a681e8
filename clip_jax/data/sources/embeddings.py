"""Folders of embeddings that `clip-jax embed` wrote, for evaluations: `embeddings:DIR`."""

from clip_jax.data.embedding_store import Embeddings


def source(address: str) -> Embeddings:
    """Opens a complete folder of embeddings.

    Examples have an 'embedding', float32 [D], instead of an image.

    Args:
        address: the folder.

    Raises:
        DataNotFound: if it is not a folder of embeddings.
        ValueError: if it is not complete.
    """
    return Embeddings(address)
