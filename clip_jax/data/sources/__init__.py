"""One file = one kind of storage, opened by a SPEC `KIND:ADDRESS`: `tfds:shapes_captions/train`.

A SPEC is the same in configs and on the command line; paths and globs may be local or `gs://`:

    tfds:NAME[/CONFIG]/SPLIT    a prepared TFDS set; slices such as `train[:10%]` work
    tars:GLOB                   uncompressed tar shards
    table:FILE                  rows of a .csv, .tsv, .jsonl or .parquet
    folder:DIR                  images, a sub-folder a class
    embeddings:DIR              what clip-jax embed wrote: rows in place of images, to evaluate

Several, each with a weight, are a mixture: `3 * tars:A.tar + 1 * tars:B.tar`.

A file offers `source(address, **options)`, options by keyword, which gives a `Source`: by number,
examples `{'image': encoded bytes or array, 'texts': [str, ...], 'label': int}`, without 'texts' or
'label' if the storage has none, and with 'labels', a list, in place of 'label' where an image may
belong to several classes. `label_names[label]` is a class's name; it is [] if there are no names,
and a label of -1 means none. `where(i)` names example i in error messages. `left_out` says,
by kind, what lay there and could not become an example. Reading is safe in threads, a source can be
pickled, an index out of range is an IndexError, and an example that cannot be used a BadRecord.
What is not there is a Missing when it is opened.
"""

import bisect
import inspect
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from clip_jax import lookup
from clip_jax.data.errors import Skipped
from clip_jax.data.shuffle import Part


class Source(Protocol):
    """What every kind of storage gives: examples by number."""

    label_names: list[str]
    left_out: dict[str, Skipped]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def where(self, i: int) -> str: ...


class Mixture:
    """The examples of several sources one after the other; in training they alternate by weight."""

    label_names: list[str] = []

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources, self.weights = list(sources), list(weights)
        self._ends = list(itertools.accumulate(map(len, sources)))
        self.left_out = {
            f'{source}: {kind}': found
            for source in sources
            for kind, found in source.left_out.items()
        }

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} examples, none with the number {i}.')
        source, place = self._place(i)
        # Classes of different sources have nothing to do with each other.
        return {k: v for k, v in source[place].items() if k not in ('label', 'labels')}

    def where(self, i: int) -> str:
        """Names example i in error messages."""
        source, place = self._place(i)
        return source.where(place)

    def __str__(self) -> str:
        return ' + '.join(f'{w:g} * {s}' for s, w in zip(self.sources, self.weights, strict=True))

    def _place(self, i: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._ends, i)
        return self.sources[number], i - (self._ends[number] - len(self.sources[number]))


def parts_of(source: Source) -> list[Part]:
    """Returns the parts of a source: of a mixture, its sources."""
    if not isinstance(source, Mixture):
        return [Part(0, len(source), 1.0)]
    ends = itertools.accumulate(map(len, source.sources))
    return [
        Part(end - len(part), end, weight)
        for part, end, weight in zip(source.sources, ends, source.weights, strict=True)
    ]


def split(specs: str) -> list[tuple[float, str]]:
    """Cuts `3 * tars:A.tar + tars:B.tar` into weights and SPECs; one without a weight has 1."""
    parts = []
    for part in specs.split(' + '):
        weight, star, spec = part.partition(' * ')
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            number = -1.0
        if not 0 < number < float('inf'):
            raise ValueError(f"data {part!r}: expected WEIGHT * SPEC, as '3 * tars:x-*.tar'")
        parts.append((number, (spec if star else part).strip()))
    return parts


def kinds(specs: str) -> list[str]:
    """Returns the kinds of sources that a SPEC, or a mixture of several, names."""
    return list(dict.fromkeys(spec.partition(':')[0] for _, spec in split(specs)))


def open_source(spec: str, **options: Any) -> Source:
    """Opens what a SPEC names; ValueError for a wrong SPEC or option and for an empty source."""
    kind, _, address = spec.partition(':')
    if not kind or not address:
        raise ValueError(
            f'data {spec!r} is not of the form KIND:ADDRESS, for example '
            f"'tfds:shapes_captions/train'. Kinds: {', '.join(lookup.names('data.sources'))}."
        )
    make = lookup.module('data.sources', kind).source
    _, *taken = inspect.signature(make).parameters
    for name in options:
        lookup.check(name, taken, what=f'option of data/sources/{kind}')
    source = make(address, **options)
    if not len(source):
        raise ValueError(f'data {spec!r} has no examples. Give one that has at least one.')
    return source
