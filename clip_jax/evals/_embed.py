"""Encoders over a data set: embeddings in the order of the records."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

CHUNK = 1024  # records read at a time; the encoder cuts them into batches of its own


def records(
    encode_image: Callable, data: Any, *, features: str = 'embedding'
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Reads a data set once: the rows [N, D] of its images, and the records without their images.

    `features`: 'embedding', unit rows, or 'trunk', those before the projection.
    """
    if features != 'embedding':
        encode_image = functools.partial(encode_image, features=features)
    rows, others = [], []
    for chunk in chunks(range(len(data)), unit='img'):
        read = [data[i] for i in chunk]
        images = [record['image'] for record in read]
        try:
            rows.append(encode_image(images))
        except ValueError:
            _raise_for_the_bad_one(encode_image, data, chunk, images)
            raise
        others += [{k: v for k, v in record.items() if k != 'image'} for record in read]
    return finite(np.concatenate(rows), 'images'), others


def texts(encode_text: Callable, captions: Sequence[str]) -> np.ndarray:
    """Embeds texts: unit rows [len(captions), D] in their order; equal texts get equal rows."""
    # An encoder may round the same text differently in batches of different sizes.
    place = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    rows = np.concatenate([encode_text(chunk) for chunk in chunks(list(place), unit='txt')])
    return finite(rows, 'texts')[[place[caption] for caption in captions]]


def finite(rows: np.ndarray, what: str) -> np.ndarray:
    """Returns the rows; ValueError if some hold NaN or infinity, with which no rank means
    anything.
    """
    wrong = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if wrong:
        raise ValueError(
            f'evals: the embeddings of {wrong:,} of {len(rows):,} {what} are not finite; '
            'the model cannot be scored'
        )
    return rows


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different rows, in order of appearance, and for each row its place among them.

    Matrix products round equal rows differently, depending on their place. Products of different
    rows alone, taken apart again, let equal rows tie to the last bit.
    """
    places: dict[bytes, int] = {}
    place = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows])
    _, first = np.unique(place, return_index=True)
    return rows[first], place


def chunks(items: Sequence, *, unit: str) -> Iterator[Sequence]:
    """Cuts a sequence into pieces of CHUNK items; on a terminal a bar shows how far it is."""
    # A bar only where there is something to wait for.
    hidden = len(items) <= CHUNK or not sys.stderr.isatty()
    with tqdm(total=len(items), unit=unit, leave=False, disable=hidden) as bar:
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            yield chunk
            bar.update(len(chunk))


def _raise_for_the_bad_one(
    encode_image: Callable, data: Any, indices: Sequence[int], images: Sequence
) -> None:
    """Raises the error of a chunk again, with the record that causes it."""
    for i, image in zip(indices, images, strict=True):
        try:
            encode_image([image])
        except ValueError as error:
            raise ValueError(f'{data.where(i)}: {error}') from None
