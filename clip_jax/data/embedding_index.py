"""The index of a shard of embeddings: which rows a record and a caption have, without its table.

It is one array, int64 [4 N + M], of a shard of N records and M embedded captions. For each record
it has the row of the image (-1: none), a hash of the image, the row of the first caption and the
number of captions; then it has a hash of each caption. So a few bytes say which rows belong to an
example of the training data, and that image and caption are those that were embedded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FIELDS = 4  # numbers of a record: row, hash, first caption, captions
NONE = -1  # the row of a record without embeddings


def hash_of(content: Any) -> int:
    """Returns a hash of a caption, or of an image, encoded or an array, as a signed integer."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(content, str):
        content = content.encode(errors='surrogatepass')
    elif isinstance(content, np.ndarray):
        digest.update(f'{content.dtype} {content.shape};'.encode())
        content = content.tobytes()
    digest.update(content)
    return int.from_bytes(digest.digest(), 'little', signed=True)


def build(records: Sequence[Mapping[str, Any]], span: range, *, texts: bool) -> np.ndarray:
    """Makes the index of a shard.

    Args:
        records: for each image its 'record', its 'image_hash', and the 'texts' that it has.
        span: the records of the data that the shard is of.
        texts: whether captions have embeddings.

    Returns:
        The index, int64 [4 * len(span) + M].
    """
    table = np.tile(np.array([NONE, 0, 0, 0], np.int64), (len(span), 1))
    hashes: list[int] = []
    for row, record in enumerate(records):
        own = (record.get('texts') or ()) if texts else ()
        table[record['record'] - span.start] = row, record['image_hash'], len(hashes), len(own)
        hashes += map(hash_of, own)
    return np.concatenate([table.ravel(), np.array(hashes, np.int64)])


def entries(index: np.ndarray, span: range) -> np.ndarray:
    """Returns what the index of a shard says of the records that have an embedding.

    Args:
        index: the index, int64 [4 * len(span) + M].
        span: the records of the data that the shard is of.

    Returns:
        int64 [n, 4], in the order of the rows: the record in the data, the hash of its image, the
        row of its first caption and the number of its captions.
    """
    table = index[: FIELDS * len(span)].reshape(-1, FIELDS)
    records = np.flatnonzero(table[:, 0] != NONE)
    return np.concatenate([records[:, None] + span.start, table[records, 1:]], axis=1)
