"""Folders that `clip-jax embed` wrote, for evaluations: `embeddings:DIR`."""

from clip_jax.data.embedding_store import Embeddings


def source(address: str) -> Embeddings:
    """Opens a complete folder of embeddings. ValueError if it is none, or not complete.

    An example has an 'embedding', float32 [D], in place of an image.
    """
    return Embeddings(address)
