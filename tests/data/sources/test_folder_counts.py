"""folder: what is in random folders is a record or counted, as a plain walk over them finds."""

import collections
import os
import pathlib
import random

import numpy as np
import pytest

from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import folder

IMAGES = ('jpg', 'JPG', 'Jpeg', 'png', 'PNG', 'webp', 'tif', 'avif')
OTHERS = ('md', 'pdf', 'json', 'TXT~', '')
CAPTIONS = ('.txt', '.TXT', '.Txt')
NAMES = ('a', 'B b', 'ü', '猫', os.fsdecode(b'\xe9'), 'x.y', '-')


def make(root: pathlib.Path, rng: random.Random, depth: int = 0) -> None:
    """Fills a folder at random: images, captions, other files, links, hidden files, folders."""
    root.mkdir()
    for i in range(rng.randrange(5)):
        stem = f'{rng.choice(NAMES)}{i}'
        kind = rng.choice(['image', 'image', 'other', 'hidden', 'link', 'broken', 'pipe'])
        image = f'{stem}.{rng.choice(IMAGES)}'
        if kind == 'image':
            (root / image).write_bytes(b'image')
            if rng.random() < 0.5:
                lines = [f'caption {k}' for k in range(rng.randrange(4))]
                (root / f'{stem}{rng.choice(CAPTIONS)}').write_text('\n'.join(lines))
        elif kind == 'other':
            (root / f'{stem}.{rng.choice(OTHERS)}').touch()
        elif kind == 'hidden':
            (root / f'.{image}').touch()
        elif kind == 'pipe':
            os.mkfifo(root / image)
        else:
            (root / image).symlink_to('/dev/null/x' if kind == 'broken' else __file__)
    if depth < 3:
        for i in range(rng.randrange(3) + (depth == 0)):
            make(root / f'{rng.choice(NAMES)} {i}', rng, depth + 1)
    if depth and rng.random() < 0.3:  # to itself, to its parent, or to all
        (root / 'again').symlink_to(rng.choice(['.', '..', '../..']))


def expected(root: pathlib.Path) -> tuple[collections.Counter, int]:
    """Counts by kind, and the captions, of each class with a walk of its own."""
    found, captions = collections.Counter(), 0
    found['no_class'] = len(images(root, os.listdir(root)))
    classes = [name for name in os.listdir(root) if os.path.isdir(root / name)]
    visits = [(root, {os.path.realpath(root)}, [*os.listdir(root)], True)]
    for name in classes:
        seen = {os.path.realpath(root)}
        for place, folders, files in os.walk(root / name, followlinks=True):
            if os.path.realpath(place) in seen:
                found['repeated_folder'] += 1
                folders.clear()
                continue
            seen.add(os.path.realpath(place))
            folders.sort()
            visits.append((pathlib.Path(place), seen, files, False))
    for place, _, names, top in visits:
        own = images(place, names)
        texts = [name for name in names if is_caption(place, name, own)]
        for name in names:
            path = place / name
            if path.is_dir():
                continue
            if name.startswith('.'):
                found['hidden'] += 1
            elif not path.is_file():
                found['not_a_file'] += 1
            elif name in own:
                found['records'] += not top
            elif name not in texts:
                found['other_file'] += 1
        captions += 0 if top else sum(len((place / x).read_text().splitlines()) for x in texts)
    return +found, captions


def images(place: pathlib.Path, names: list[str]) -> list[str]:
    known = [ending.lower() for ending in IMAGES]
    return [
        name
        for name in names
        if (place / name).is_file()
        and not name.startswith('.')
        and name.rpartition('.')[2].lower() in known
    ]


def is_caption(place: pathlib.Path, name: str, own: list[str]) -> bool:
    stem, ending = os.path.splitext(name)
    return ending.lower() == '.txt' and stem in [os.path.splitext(image)[0] for image in own]


@pytest.mark.parametrize('seed', range(40))
def test_records_and_counts_are_what_is_there(tmp_path, seed):
    root = tmp_path / 'set'
    make(root, random.Random(seed))
    (root / 'sure').mkdir()
    (root / 'sure/1.png').touch()
    source = folder.source(str(root))
    records, texts = [], 0
    for i in range(len(source)):
        records.append(source.where(i))
        texts += len(source[i].get('texts', []))
        assert os.path.basename(os.path.dirname(f'{root}/{source.where(i)}'))
    counts = {kind: found.count for kind, found in source.skipped.items()}
    want, captions = expected(root)
    assert {'records': len(records), **counts} == dict(want)
    assert len({*records}) == len(records) and all(map(os.path.isfile, records))
    assert texts == captions
    labels = [source[i]['label'] for i in range(len(source))]
    assert labels == sorted(labels)
    assert {*labels} <= {*range(len(source.label_names))}


def test_files_that_cannot_be_read_are_bad_records_and_not_lost(tmp_path, monkeypatch):
    make(tmp_path / 'set', random.Random(1))
    write = [(tmp_path / 'set' / 'z' / f'{i}.png') for i in range(30)]
    write[0].parent.mkdir()
    for path in write:
        path.touch()
    source = folder.source(f'{tmp_path}/set')
    closed = {source.where(i) for i in np.random.default_rng(0).permutation(len(source))[:9]}
    plain = open

    def refuse(path, *arguments):
        if path in closed:
            raise PermissionError(13, 'Permission denied')
        return plain(path, *arguments)

    monkeypatch.setattr('builtins.open', refuse)
    kinds = []
    for i in range(len(source)):
        try:
            source[i]
        except BadRecord as error:
            kinds.append(error.kind)
            assert source.where(i) in closed
    assert kinds == ['no_image'] * 9
