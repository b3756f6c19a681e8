"""Embeddings of a data set, in the order of its records."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.runtime.progress import Progress

CHUNK = 1024  # texts per call of the encoder, which splits them into batches
# Images per call of the encoder, which prefetches within a call only.
IMAGES = 8192


def records(
    encode_image: Callable, data: Source, *, features: str = 'embedding'
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Embeds the images of a data set, which is read once.

    A folder of embeddings returns its own.

    Args:
        encode_image: images -> embeddings, float32 [N, D].
        data: the data set.
        features: 'embedding', of unit length, or 'pre_projection'.

    Returns:
        The embeddings, float32 [N, D], and the records without their images.

    Raises:
        ValueError: a record cannot be used, or an embedding is not finite.
    """
    if hasattr(data, 'embeddings'):
        # pyrefly: ignore[missing-attribute]  # it also has `records`
        return finite(data.embeddings(features), 'images'), data.records()
    wanted = {} if features == 'embedding' else {'features': features}
    rows, others = [], []
    with Progress('images', len(data), unit='images', log=False, delay=1) as progress:
        for start in range(0, len(data), IMAGES):
            chunk = range(start, min(start + IMAGES, len(data)))
            images = _Images(data, chunk, progress.advance)
            try:
                rows.append(encode_image(images, **wanted))
            except ValueError:
                _raise_for_the_bad_one(encode_image, data, chunk)
                raise
            others += images.rest()
    return finite(np.concatenate(rows), 'images'), others


def first(data: Source) -> list[dict[str, Any]]:
    """Returns the first record of a data set, or nothing if it is bad: reading all reports that."""
    try:
        return [data[0]]
    except ValueError:
        return []


class _Images(Sequence):
    """The images of some records, read lazily in the encoder's threads; the rest of each record is
    kept.
    """

    def __init__(
        self, data: Source, indices: Sequence[int], advance: Callable[[], Any] = lambda: None
    ):
        self._rest: list[dict[str, Any] | None] = [None] * len(indices)
        self._data, self._indices, self._advance = data, indices, advance

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, k: int | slice) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        record = dict(self._data[self._indices[k]])
        image = record.pop('image')
        self._rest[k] = record
        self._advance()
        return image

    def rest(self) -> list[dict[str, Any]]:
        """Returns the records without their images; reads those that were not read yet."""
        for k, record in enumerate(self._rest):
            if record is None:
                self[k]
        return [record for record in self._rest if record is not None]


def texts(encode_text: Callable, captions: Sequence[str]) -> np.ndarray:
    """Returns the unit-length embeddings of texts, [N, D]; equal texts have equal embeddings."""
    # An encoder may round the same text differently in batches of different sizes.
    place = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    rows = np.concatenate([encode_text(chunk) for chunk in chunks(list(place), unit='txt')])
    return finite(rows, 'texts')[[place[caption] for caption in captions]]


def finite(rows: np.ndarray, what: str) -> np.ndarray:
    """Returns embeddings; ValueError if some are not finite, since they cannot be ranked."""
    wrong = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if wrong:
        raise ValueError(
            f'evals: the embeddings of {wrong:,} of {len(rows):,} {what} are not finite; '
            'the model cannot be scored'
        )
    return rows


def chunks(items: Sequence, *, unit: str, size: int = 0) -> Iterator[Sequence]:
    """Splits a sequence into chunks of `size` items (0: CHUNK), with a progress bar."""
    size = size or CHUNK
    with Progress(unit, len(items), unit=unit, log=False, delay=1) as progress:
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            yield chunk
            progress.advance(len(chunk))


def _raise_for_the_bad_one(encode_image: Callable, data: Source, indices: Sequence[int]) -> None:
    """Raises the error of a chunk again, naming the first bad record, which bisection finds."""
    while indices:
        half = indices[: (len(indices) + 1) // 2]
        try:
            encode_image(_Images(data, half))
        except ValueError as error:
            if len(half) == 1:
                raise ValueError(f'{data.where(half[0])}: {error}') from None
            indices = half
        else:
            indices = indices[len(half) :]
