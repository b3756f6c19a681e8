"""Published checkpoints by name: open_clip's MODEL/TAG, and repositories of transformers and
OpenVision.

The table, published.tsv, has what their authors publish: names and repositories of open_clip 3.3
and of the models' papers; ImageNet zero-shot accuracy from open_clip's table of results
(docs/openclip_results.csv, 2026-06), of OpenVision from its README (2026-11); licenses from
model cards, empty where none was looked up.
"""

import csv
import difflib
import functools
import importlib.resources
from collections.abc import Mapping
from typing import NamedTuple

TABLE = 'published.tsv'
_CLOSE = 0.6  # similarity from which a name is suggested


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        name: MODEL/TAG of open_clip, or OWNER/NAME of another repository.
        repository: OWNER/NAME on the Hugging Face hub.
        loads: whether clip_jax loads it.
        missing: what of it clip_jax has not.
        trained_on: the data.
        imagenet: published zero-shot accuracy on ImageNet in percent; None: not in the table.
        license: of the weights; '': see the repository.
    """

    name: str
    repository: str
    loads: bool
    missing: str
    trained_on: str
    imagenet: float | None
    license: str


@functools.cache
def published() -> tuple[Published, ...]:
    """Returns the table."""
    text = importlib.resources.files('clip_jax.places').joinpath(TABLE).read_text()
    return tuple(map(_row, csv.DictReader(text.splitlines(), delimiter='\t')))


def _row(cells: Mapping[str, str]) -> Published:
    return Published(
        name=cells['name'],
        repository=cells['repository'],
        loads=cells['loads'] == 'yes',
        missing=cells['missing'],
        trained_on=cells['trained_on'],
        imagenet=float(cells['imagenet']) if cells['imagenet'] else None,
        license=cells['license'],
    )


@functools.cache
def _by_spelling() -> dict[str, Published]:
    """The table by every spelling of a name, in lower case; the first of several counts."""
    found: dict[str, Published] = {}
    for row in published():
        model, _, tag = row.name.partition('/')
        # 'openai/ViT-L-14', and the last part of a repository's name.
        others = [f'{tag}/{model}'] if tag == 'openai' else []
        others += [row.repository, row.repository.rpartition('/')[2]]
        for spelling in (row.name, *others):
            found.setdefault(spelling.lower(), row)
    return found


def find(name: str) -> Published | None:
    """Returns a published checkpoint by its name, in any case; None if there is none.

    Raises:
        ValueError: it is known, but clip_jax cannot load it.
    """
    row = _by_spelling().get(name.lower())
    if row and not row.loads:
        raise ValueError(
            f'{name}: not supported: it needs the {row.missing}; `clip-jax models` lists what loads'
        )
    return row


def address(row: Published) -> str:
    """Returns the address that `places.local` takes."""
    return f'hf://{row.repository}'


def near(name: str, count: int = 3) -> list[str]:
    """Returns names that are similar to an unknown one."""
    spellings = _by_spelling()
    close = difflib.get_close_matches(name.lower(), spellings, count * 3, _CLOSE)
    return [*dict.fromkeys(spellings[x].name for x in close)][:count]
