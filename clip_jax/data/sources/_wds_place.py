"""The files beside the shards of an evaluation set, as CLIP_benchmark publishes them.

PLACE/dataset_type.txt                       retrieval or multilabel; without it: one label
PLACE/classnames.txt                         a name per line, in the order of the labels
PLACE/zeroshot_classification_templates.txt  a template per line, with {c} for the name
PLACE/test/nshards.txt                       the number of shards
PLACE/test/0.tar, 1.tar, ...
"""

import os
import re
from typing import NamedTuple

from clip_jax import lookup
from clip_jax.data.errors import BadRecord, DataNotFound
from clip_jax.data.sources import _captions, _files, _tar_labels, _tar_shards
from clip_jax.data.sources._tar_index import Shard

KINDS = ('classification', 'multilabel', 'retrieval')
DEFAULT_SPLIT = 'test'
_HUB = re.compile(r'hf://datasets/[^/]+/')
# The page of a set, which CLIP_benchmark takes as the root of its data.
_PAGE = re.compile(r'https://huggingface\.co/datasets/([^/]+/[^/]+?)(?:/tree/([^/]+))?/?')


class Place(NamedTuple):
    """A split of an evaluation set.

    Attributes:
        folder: the folder of the set, which holds those of its splits.
        split: the name of the split.
        shards: its shards, in the order of their numbers.
    """

    folder: str
    split: str
    shards: list[Shard]

    @property
    def names_file(self) -> str:
        return f'{self.folder}/classnames.txt'

    def kind(self) -> str:
        """Returns one of KINDS; ValueError if the set is of another kind."""
        path = f'{self.folder}/dataset_type.txt'
        found = (_text(path) or KINDS[0]).strip().lower()
        return lookup.check(found, KINDS, what=f'wds: {path}')

    def names(self, objective: str) -> list[str]:
        """Returns the class names, of one objective if it is not ''; [] if the set has none."""
        names = _tar_labels.read_names(self.names_file, 'remove it to use labels without names')
        return _of_objective(list(enumerate(names, start=1)), objective, self.names_file)[1]

    def templates(self, objective: str) -> list[str]:
        """Returns the templates, of one objective if it is not ''; [] if the set has none."""
        path = f'{self.folder}/zeroshot_classification_templates.txt'
        lines = [line.strip() for line in (_text(path) or '').strip().split('\n')]
        found = list(enumerate(lines, start=1)) if any(lines) else []
        numbers, templates = _of_objective(found, objective, path)
        for number, template in zip(numbers, templates, strict=True):
            if '{c}' not in template and '{}' not in template:
                raise ValueError(
                    f'wds: {path}: line {number} is {template[:80]!r}; expected a template with '
                    '{c} for the class name. Write it again'
                )
        return templates


def find(address: str, split: str, root: str) -> Place:
    """Finds a split of a set.

    Args:
        address: the folder of a set, or that of a split of it; local, or an address with '://'; or
            the page of a repository of the hub.
        split: the name of the split, '' for that of the address, or else test.
        root: a folder with copies of sets (see `source` of wds).

    Raises:
        DataNotFound: there is no such set or split.
        ValueError: some shards are missing, or the number of shards is none.
    """
    place = _of_page(address)
    place = _below(root, place) if root else place
    place = place if _files.is_remote(place) else os.path.expanduser(place)
    place = place.rstrip('/') or '/'
    for folder, name in [*_parent(place), (place, split or DEFAULT_SPLIT)]:
        if (number := _text(f'{folder}/{name}/nshards.txt')) is None:
            continue
        if split not in ('', name):
            raise ValueError(f'wds: {address!r} is the split {name!r}, but split is {split!r}')
        return Place(folder, name, _shards(f'{folder}/{name}', number))
    raise DataNotFound(
        f'wds: no data set in {place!r}: there is no {split or DEFAULT_SPLIT}/nshards.txt. '
        f'{_tar_shards.nearest(place)} Expected the folder of a set as CLIP_benchmark writes them, '
        'or of a split'
    )


def _of_page(address: str) -> str:
    """An address, or in place of the page of a repository its files."""
    page = _PAGE.fullmatch(address)
    if not page:
        return address
    revision = f'@{page[2]}' if page[2] not in (None, 'main') else ''
    return f'hf://datasets/{page[1]}{revision}'


def _below(root: str, address: str) -> str:
    """Where a set is below a folder of copies, which have the names of the sets on the hub."""
    name = _HUB.sub('', address)
    if _files.is_remote(name) or os.path.isabs(os.path.expanduser(name)):
        raise ValueError(
            f'wds: root is {root!r}, which has no effect on {address!r}; expected '
            'hf://datasets/OWNER/NAME, or a path in root'
        )
    set_, slash, rest = name.partition('/')
    name = set_.partition('@')[0] + slash + rest if name != address else name
    return f'{root.rstrip("/")}/{name}'


def _parent(place: str) -> list[tuple[str, str]]:
    """The folder above a place and its name in there; [] if there is none above."""
    above, slash, name = place.rpartition('/')
    if above.endswith(('/', ':')) or _HUB.fullmatch(f'{above}/'):
        return []  # only the server, or the owner of repositories
    return [(above or ('/' if slash else '.'), name)]


def _shards(folder: str, number: str) -> list[Shard]:
    """The shards of a split, in order; ValueError if one is missing."""
    path = f'{folder}/nshards.txt'
    if not re.fullmatch(r'\s*0*[1-9]\d{0,6}\s*', number):
        raise ValueError(f'wds: {path} holds {number[:40]!r}; expected the number of shards')
    files = [f'{folder}/{k}.tar' for k in range(int(number))]
    found = _tar_shards.look_up(files)
    missing = [file for file, shard in zip(files, found, strict=True) if not shard]
    if missing:
        raise ValueError(
            f'wds: {path} says {len(files)} shards, but {len(files) - len(missing)} are there: '
            f'{missing[0]} is missing. Download or write the set again'
        )
    return [shard for shards in found for shard in shards]


def _of_objective(
    lines: list[tuple[int, str]], objective: str, path: str
) -> tuple[list[int], list[str]]:
    """The numbers and texts of lines; of an objective, those that begin with it and a colon."""
    if objective and lines:
        mark = f'{objective}:'
        own = [(n, line.removeprefix(mark)) for n, line in lines if line.startswith(mark)]
        if not own:
            known = [*dict.fromkeys(line.partition(':')[0] for _, line in lines if ':' in line)]
            lookup.check(objective, known, what=f'wds: {path}: objective')
        lines = own
    return [number for number, _ in lines], [line for _, line in lines]


def _text(path: str) -> str | None:
    """Reads a file; None if there is none, ValueError if it is not UTF-8."""
    try:
        return _captions.decode(_files.read(path))
    except BadRecord as error:
        if error.kind == 'not_utf8':
            raise ValueError(f'wds: {path}: {error}. Write it again') from None
        return None
