"""One file = one kind of storage, opened by a SPEC `KIND:ADDRESS`: `tfds:shapes_captions/train`.

A SPEC is the same in configs and on the command line; paths and globs may be local or `gs://`:

    tfds:NAME[/CONFIG]/SPLIT    a prepared TFDS set; slices such as `train[:10%]` work
    tars:GLOB                   uncompressed tar shards

A file offers `source(address, **options)`, options by keyword, which gives a `Source`: by number,
examples `{'image': encoded bytes or array, 'texts': [str, ...], 'label': int}`, without 'texts' or
'label' if the storage has none. `label_names[label]` is a class's name; it is [] if there are no
names, and a label of -1 means none. `where(i)` names example i in error messages. Reading is safe
in threads, a source can be pickled, and an index out of range is an IndexError.
"""

import inspect
from typing import Any, Protocol

from clip_jax import lookup


class Source(Protocol):
    """What every kind of storage gives: examples by number."""

    label_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def where(self, i: int) -> str: ...


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
