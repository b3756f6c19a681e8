"""Images with right and wrong captions, or a cue and candidates, for tests: `choices:FILES`."""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import Question, _annotations, _captions, _files, _pictures, _stored_rows
from clip_jax.data.sources._table_readers import CACHE_BYTES, Cache
from clip_jax.runtime import foreign_json

# Names that columns have in published files; the first that a file has is used.
_IMAGES = ('image', 'images', 'filename', 'image_path')
_RIGHT = ('caption', 'true_caption', 'correct_caption')
_GROUPS = ('group', 'category', 'relation_name', 'attributes')
# All that a file has are used.
_WRONG = ('negative_caption', 'false_caption', *(f'hard_text_{k}' for k in range(1, 5)))
_BOX = ('bbox_x', 'bbox_y', 'bbox_w', 'bbox_h')


def source(address: str, *, root: str = '') -> 'Choices':
    """Opens questions about images in the layout of a published test.

    A row has an image, a right caption and one or several wrong ones (SugarCrepe, ARO); or two
    images and two captions (Winoground); or a cue and candidate images (WinoGAViL).

    Args:
        address: a path, a glob or braces: .json, .jsonl or .csv with names of image files, or
            .parquet with images. Where rows name no group, it is the name of their file.
        root: the folder of the images, or of folders of them; '': the folder of the file.

    Raises:
        DataNotFound: no file matches, or the folder or all images are missing.
        ValueError: a row has another layout, or some images are missing.
    """
    spec = f'choices:{address}'
    paths, cache = _files.matches(address, 'choices'), Cache(CACHE_BYTES)
    drafts = [draft for path in paths for draft in _drafts(path, cache)]
    named = [image for draft in drafts for image in draft.images if isinstance(image, _Named)]
    where: dict[str, str] = {}
    for folder in dict.fromkeys(image.folder for image in named):
        names = [image.name for image in named if image.folder == folder]
        found = _pictures.locate(names, os.path.expanduser(root) or folder or '.', spec)
        where |= {f'{folder}/{name}': path for name, path in zip(names, found, strict=True)}
    place: dict[Any, int] = {}  # of each image, which several rows may share
    asked = []
    for draft in drafts:
        images = [
            _pictures.File(where[f'{image.folder}/{image.name}'], image.box)
            if isinstance(image, _Named)
            else image
            for image in draft.images
        ]
        asked.append((draft, tuple(place.setdefault(image, len(place)) for image in images)))
    return Choices(spec, list(place), asked, functools.partial(source, address, root=root))


class _Named(NamedTuple):
    """An image file as a row names it; `folder` is that of the row's file."""

    folder: str
    name: str
    box: tuple[float, float, float, float] | None = None


class _Draft(NamedTuple):
    """A question as a row asks it; the texts are UTF-8."""

    where: str
    images: tuple[Any, ...]
    texts: tuple[bytes, ...]
    matches: tuple[tuple[int, int], ...]
    group: str


class Choices(_pictures.Pictures):
    """The images of all questions, each once; its captions are those that belong to it."""

    def __init__(
        self,
        spec: str,
        images: Sequence[_pictures.Stored],
        asked: Sequence[tuple[_Draft, tuple[int, ...]]],
        again: Callable[[], 'Choices'],
    ):
        """Keeps the images, and each question with the indices of its images."""
        texts: list[dict[bytes, None]] = [{} for _ in images]
        for draft, places in asked:
            for i, k in draft.matches:
                texts[places[i]][draft.texts[k]] = None
        pairs = [[('caption', list(own))] for own in texts]
        super().__init__(spec, images, pairs, ['caption'], again)
        self._asked = asked

    @property
    def questions(self) -> list[Question]:
        """All questions, in the order of the rows; BadRecord if a text is not UTF-8."""
        return [
            Question(
                places,
                tuple(_text(text, draft.where) for text in draft.texts),
                draft.matches,
                draft.group,
            )
            for draft, places in self._asked
        ]


def _text(data: bytes, where: str) -> str:
    try:
        return _captions.decode(data).strip()
    except BadRecord as error:
        raise BadRecord(error.kind, f'{where}: {error}') from None


def _drafts(path: str, cache: Cache) -> list[_Draft]:
    """The questions of a file."""
    stored = path.lower().endswith('.parquet')
    rows = _stored_rows.rows(path, cache) if stored else _annotations.rows(path)
    stem = re.sub(r'-\d+-of-\d+$', '', os.path.splitext(os.path.basename(path))[0])
    folder = path.rpartition('/')[0]
    return [_draft(where, row, folder, stem) for where, row in rows]


def _draft(where: str, row: Mapping[str, Any], folder: str, stem: str) -> _Draft:
    """The question of a row, whose layout its columns tell."""
    if 'associations' in row:
        return _associations(where, row, folder)
    if 'image_0' in row:
        images = tuple(_image(where, row, name, folder) for name in ('image_0', 'image_1'))
        texts = tuple(_caption(where, row, name) for name in ('caption_0', 'caption_1'))
        group = row.get('collapsed_tag') or stem
        return _Draft(where, images, texts, ((0, 0), (1, 1)), str(group))
    image = next((name for name in _IMAGES if name in row), '')
    right = next((name for name in _RIGHT if name in row), '')
    wrong = [name for name in _WRONG if name in row]
    if not (image and right and wrong):
        raise ValueError(
            f'{where}: has {", ".join(map(str, row)) or "nothing"}; expected an image '
            f'({", ".join(_IMAGES)}), a right caption ({", ".join(_RIGHT)}) and wrong ones '
            f'({", ".join(_WRONG)}); or image_0, image_1, caption_0 and caption_1; or cue, '
            'candidates and associations'
        )
    texts = [_caption(where, row, right)]
    for name in wrong:
        several = row[name] if isinstance(row[name], list) else [row[name]]
        texts += [_caption(where, {name: one}, name) for one in several]
    group = next((row[name] for name in _GROUPS if row.get(name)), stem)
    group = '_'.join(map(str, group)) if isinstance(group, list) else str(group)
    found = _image(where, row, image, folder)
    return _Draft(where, (found,), tuple(texts), ((0, 0),), group)


def _associations(where: str, row: Mapping[str, Any], folder: str) -> _Draft:
    """A question of WinoGAViL: which candidates belong to a cue."""
    candidates, right = (_names(where, row, name) for name in ('candidates', 'associations'))
    for name in right:
        lookup.check(name, candidates, what=f'{where}: associations')
    cue = _text(_caption(where, row, 'cue'), where).lower()
    # The published prompt.
    article = 'An' if cue[0] in 'aeiou' else 'A'
    return _Draft(
        where,
        tuple(_Named(folder, name) for name in candidates),
        (f'{article} {cue}'.encode(),),
        tuple((i, 0) for i, name in enumerate(candidates) if name in right),
        f'{len(candidates)} candidates',
    )


def _names(where: str, row: Mapping[str, Any], name: str) -> list[str]:
    """A list of names, which a .csv file has as JSON."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise ValueError(
            f'{where}: {name} is {row.get(name)!r:.80}; expected a list of names of images'
        )
    return value


def _caption(where: str, row: Mapping[str, Any], name: str) -> bytes:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{where}: {name} is {value!r:.80}; expected a text')
    return _captions.encoded(value) or b''


def _image(where: str, row: Mapping[str, Any], name: str, folder: str) -> Any:
    value = row.get(name)
    if isinstance(value, _stored_rows.Cell):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f'{where}: {name} is {value!r:.80}; expected the name of an image file')
    if _BOX[0] not in row:
        return _Named(folder, value)
    left, top, width, height = (
        foreign_json.check(row.get(side), float, f'{where}: {side}') for side in _BOX
    )
    if min(width, height) < 1:
        raise ValueError(
            f'{where}: the box is {width} by {height} pixels; expected bbox_w and bbox_h of at '
            'least 1'
        )
    return _Named(folder, value, (left, top, left + width, top + height))
