"""Data sources: one file per kind of storage, opened by a SPEC `KIND:ADDRESS`.

A SPEC is the same in configs and on the command line. Paths and globs may be local or `gs://`:

    tfds:NAME[/CONFIG]/SPLIT    a prepared TFDS data set; slices such as `train[:10%]` work
    tars:GLOB                   uncompressed tar shards
    table:FILE                  rows of a .csv, .tsv, .jsonl or .parquet file
    folder:DIR                  image files, one sub-folder per class
    karpathy:FILE               a Karpathy split of COCO or Flickr30k: images with five captions
    multilingual:FILES          images with captions in several languages
    choices:FILES               images with right and wrong captions, for evaluations
    embeddings:DIR              the output of clip-jax embed, for evaluations
    kept:FILE                   the records of another data set that a list keeps
    my_package.my_source:ADDRESS   a source of your own, by the import path of its module

Several SPECs, each with a weight, are a mixture: `3 * tars:A.tar + 1 * tars:B.tar`.

A source module defines `source(address, **options)`, whose options are keyword-only and have
defaults. It returns a `Source`, which gives examples by index:

    {'image': encoded bytes or uint8 array, 'texts': [str, ...], 'label': int}

A source may name in `text_fields` the fields (columns, members, features) that captions come from.
If there are several, examples have 'fields' too: the texts by field.

'texts' and 'label' are missing if the storage has none. Images that may have several classes have
'labels', a list of int, instead of 'label'. A label of -1 means none; `label_names[label]` is the
name of a class, and `label_names` is [] if there are no names. `where(i)` says in error messages
where example i is stored. `skipped` counts, by kind, what was found and could not become an
example. Sources are safe to read in several threads and can be pickled. An index out of range is an
IndexError, an example that cannot be used a BadRecord. Data that does not exist is a DataNotFound
when the source is opened.
"""

import bisect
import inspect
import itertools
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from clip_jax import lookup
from clip_jax.data.errors import Skipped
from clip_jax.data.shuffle import Part


@runtime_checkable
class Source(Protocol):
    """Examples by index, whatever the storage; see the package's docstring for what they hold."""

    label_names: list[str]
    skipped: Mapping[str, Skipped]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def where(self, i: int) -> str: ...


class Question(NamedTuple):
    """Images and texts, some of which belong together. A source may have a list of `questions`.

    Attributes:
        images: the indices of the images in the source.
        texts: the texts.
        matches: which belong together: pairs of a place in `images` and one in `texts`.
        group: what the question is about, such as 'swap_obj'.
    """

    images: tuple[int, ...]
    texts: tuple[str, ...]
    matches: tuple[tuple[int, int], ...]
    group: str


class Mixture:
    """The examples of several sources, one source after the other; training samples by weight."""

    label_names: list[str] = []

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources, self.weights = list(sources), list(weights)
        self.text_fields = tuple(dict.fromkeys(name for x in sources for name in text_fields(x)))
        self._ends = list(itertools.accumulate(map(len, sources)))
        self.skipped: Mapping[str, Skipped] = {
            f'{source}: {kind}': found
            for source in sources
            for kind, found in source.skipped.items()
        }

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f'{self} has {len(self)} examples, none with the index {i}.')
        source, index = self._locate(i)
        # Labels of different sources are unrelated.
        example = with_fields(source, source[index])
        return {k: v for k, v in example.items() if k not in ('label', 'labels')}

    def where(self, i: int) -> str:
        """Says where example i is stored."""
        source, index = self._locate(i)
        return source.where(index)

    def __str__(self) -> str:
        return ' + '.join(f'{w:g} * {s}' for s, w in zip(self.sources, self.weights, strict=True))

    def _locate(self, i: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._ends, i)
        return self.sources[number], i - (self._ends[number] - len(self.sources[number]))


def text_fields(source: Source) -> tuple[str, ...]:
    """Returns the names of the fields that a source's captions come from; () if it names none."""
    return tuple(getattr(source, 'text_fields', ()))


def with_fields(source: Source, example: dict[str, Any]) -> dict[str, Any]:
    """Returns an example of a source with 'fields' also where all its texts are of one field."""
    names = text_fields(source)
    if len(names) != 1 or 'fields' in example or 'texts' not in example:
        return example
    return {**example, 'fields': {names[0]: example['texts']}}


def parts_of(source: Source) -> list[Part]:
    """Returns the parts of a source that are shuffled separately: of a mixture, its sources."""
    if not isinstance(source, Mixture):
        return [Part(0, len(source), 1.0)]
    ends = itertools.accumulate(map(len, source.sources))
    return [
        Part(end - len(part), end, weight)
        for part, end, weight in zip(source.sources, ends, source.weights, strict=True)
    ]


def split(specs: str) -> list[tuple[float, str]]:
    """Splits `3 * tars:A.tar + tars:B.tar` into (weight, SPEC); the default weight is 1."""
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


def option_key(spec: str) -> str:
    """Returns the name under which config.data.options holds the options of a SPEC or KIND.

    It is the kind; for a module of your own (`my_package.my_source`), the last part of its name.
    """
    return spec.partition(':')[0].rpartition('.')[2]


def check(specs: str) -> None:
    """Raises ValueError if a SPEC, or one of a mixture, is not KIND:ADDRESS of a kind that exists;
    nothing is opened.
    """
    for _, spec in split(specs):
        _module(spec)


def _module(spec: str) -> ModuleType:
    kind, _, address = spec.partition(':')
    if not kind or not address:
        example = f'folder:{spec}' if os.path.isdir(spec) else 'tfds:shapes_captions/train'
        raise ValueError(
            f'data {spec!r} is not of the form KIND:ADDRESS, for example {example!r}. '
            f'Kinds: {", ".join(lookup.names("data.sources"))}.'
        )
    return lookup.module('data.sources', kind, 'source')


def open_source(spec: str, **options: Any) -> Source:
    """Opens the data set that a SPEC names.

    Args:
        spec: KIND:ADDRESS, where KIND is a file of data/sources or the import path of a module.
        **options: options of that kind of source.

    Returns:
        The source, which has at least one example.

    Raises:
        ValueError: if the SPEC or an option is wrong, or the source is empty or incomplete.
        DataNotFound: if the data does not exist.
    """
    kind, _, address = spec.partition(':')
    make = _module(spec).source
    _, *known = inspect.signature(make).parameters
    for name in options:
        lookup.check(name, known, what=f'option of {lookup.label("data.sources", kind)}')
    source = make(address, **options)
    if not isinstance(source, Source):
        raise ValueError(
            f'data {spec!r}: {type(source).__name__} is not a data source; it must have '
            '__len__, __getitem__, where, label_names and skipped'
        )
    if not len(source):
        raise ValueError(f'data {spec!r} has no examples. Give one that has at least one.')
    return source
