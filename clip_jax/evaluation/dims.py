"""Scores of the first coordinates of embeddings, for Matryoshka models: the option `dims` of every
evaluation. Images and texts are embedded once for all of them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import evals
from clip_jax.data.sources import Source
from clip_jax.models import matryoshka

OPTION = 'dims'


def check(function: Callable, options: Mapping[str, Any], what: str) -> tuple[int, ...]:
    """Returns the numbers of coordinates that the options of an evaluation ask for, rising.

    Args:
        function: the evaluation's `evaluate`.
        options: its options; `dims` is one integer, several or not set.
        what: what a message calls the evaluation.

    Returns:
        The numbers, () if there are none.

    Raises:
        ValueError: they are no numbers, or another option does not go with them.
    """
    dims = options.get(OPTION)
    if dims is None:
        return ()
    several = (dims,) if isinstance(dims, int) else dims
    right = isinstance(several, Sequence) and all(type(dim) is int and dim > 0 for dim in several)
    if not right or not len(several):
        raise ValueError(f'{what}: dims is {dims!r}; expected integers above 0, such as (64, 128)')
    own = inspect.signature(function).parameters
    if 'features' in own:
        features = options.get('features') or own['features'].default
        if features != 'embedding':
            raise ValueError(
                f'{what}: dims is {dims!r} and features {features!r}; only embeddings can be cut: '
                'add features=embedding, or leave dims out'
            )
    if options.get('save'):
        raise ValueError(
            f'{what}: dims and save: each dimension has a probe of its own; give one of the two, '
            'or write embeddings with clip-jax embed --dim'
        )
    return tuple(sorted({*several}))


def evaluate(
    function: Callable[..., dict[str, Any]],
    dims: Sequence[int],
    encoders: tuple[Callable, Callable],
    data: Source,
    others: Mapping[str, Source],
) -> dict[str, Any]:
    """Scores whole embeddings, and their first coordinates.

    Args:
        function: the evaluation's `evaluate`, with its options but for those that name data.
        dims: the numbers of coordinates; () for whole embeddings only.
        encoders: (encode_image, encode_text).
        data: the data set that is scored.
        others: further data sets, by option.

    Returns:
        The report of whole embeddings; with `dims` also the scores `dim64/NAME`, and `dims`, the
        headline score of each number of coordinates.

    Raises:
        ValueError: embeddings have fewer coordinates.
    """
    encode_image, encode_text = encoders
    if not dims:
        return function(encode_image, encode_text, data, **others)
    images = {id(x): functools.cache(_reader(encode_image, x)) for x in (data, *others.values())}
    texts, logits = _Texts(encode_text), functools.partial(evals.logits_of, encode_text)

    def report(dim: int | None) -> dict[str, Any]:
        def cut(source: Source) -> Any:
            return _Cut(source, images[id(source)], dim)

        return function(
            lambda rows, **options: matryoshka.first(encode_image(rows, **options), dim),
            evals.TextEncoder(lambda some: matryoshka.first(texts(some), dim), logits),
            cut(data),
            **{name: cut(source) for name, source in others.items()},
        )

    width = images[id(data)]()[0].shape[1]
    matryoshka.check(max(dims), width)
    whole = report(None)
    headline, scores, curve = next(iter(whole['scores'])), {}, []
    for dim in dims:
        found = report(dim)['scores']
        scores |= {f'dim{dim}/{name}': score for name, score in found.items()}
        curve.append([dim, found[headline]['value']])
    if width not in dims:
        curve.append([width, whole['scores'][headline]['value']])
    return {**whole, 'scores': whole['scores'] | scores, OPTION: curve}


def _reader(encode_image: Callable, source: Source) -> Callable[[], tuple[np.ndarray, list]]:
    return lambda: evals.records(encode_image, source)


class _Cut:
    """A data set whose images are embedded, with the first coordinates of their embeddings."""

    def __init__(
        self, source: Source, read: Callable[[], tuple[np.ndarray, list]], dim: int | None
    ):
        self._source, self._read, self._dim = source, read, dim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[i]

    def __str__(self) -> str:
        return str(self._source)

    def embeddings(self, features: str = 'embedding') -> np.ndarray:
        """Returns the embeddings of all images, float32 [N, dim]."""
        matryoshka.check(self._dim, self._read()[0].shape[1], features=features)
        return matryoshka.first(self._read()[0], self._dim)

    def records(self) -> list[dict[str, Any]]:
        """Returns texts and labels of all images."""
        return [dict(record) for record in self._read()[1]]


class _Texts:
    """Embeds each text once."""

    def __init__(self, encode_text: Callable):
        self._encode = encode_text
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of texts, float32 [N, D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self._encode(new), strict=True)
        return np.stack([self._known[text] for text in texts])
