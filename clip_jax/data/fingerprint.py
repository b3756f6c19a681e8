"""A fingerprint of a data set, which says whether data elsewhere are the same."""

import hashlib

import numpy as np

from clip_jax.data.errors import BadRecord
from clip_jax.data.shuffle import shuffled
from clip_jax.data.sources import Source, parts_of

SAMPLED = 64  # records of each source that are read


def fingerprint(source: Source) -> str:
    """Returns a hash of a data set as 32 hexadecimal digits.

    It depends on the number of records of each source and their shares of a batch, and on the image
    (encoded bytes, or pixels) and the captions of SAMPLED records of each, always those with the
    same numbers. So it changes if records are added, removed or in another order, and most probably
    if many of them are others; that a few are others it does not see.

    Args:
        source: the data set, or a mixture of several.
    """
    digest, parts = hashlib.sha256(), parts_of(source)
    total = sum(part.weight for part in parts)
    for k, part in enumerate(parts):
        length = part.stop - part.start
        digest.update(f'{length} {part.weight / total:.12g};'.encode())
        places = np.arange(min(SAMPLED, length))
        for record in shuffled(places, length, (0, k)):
            digest.update(_record(source, part.start + int(record)))
    return digest.hexdigest()[:32]


def _record(source: Source, number: int) -> bytes:
    digest = hashlib.sha256()
    try:
        example = source[number]
    except BadRecord as error:
        return f'bad {error.kind};'.encode()
    image = example.get('image', b'')
    if isinstance(image, np.ndarray):
        digest.update(f'{image.shape} {image.dtype};'.encode())
        image = np.ascontiguousarray(image).tobytes()
    digest.update(image)
    for text in example.get('texts', ()):
        digest.update(f'{len(text)};{text}'.encode())
    return digest.digest()
