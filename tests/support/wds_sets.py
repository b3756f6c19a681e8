"""Small evaluation sets in the layouts that CLIP_benchmark and DataComp publish."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from support.pictures import encode

COLORS = {'red': (220, 20, 20), 'green': (20, 190, 30), 'blue': (20, 30, 220), 'gray': (128,) * 3}
COLORS |= {'yellow': (230, 220, 20), 'violet': (160, 30, 200), 'black': (10,) * 3}
TEMPLATES = ('a {c} picture', 'something {c}')
FORMATS = {'webp': {'lossless': True}, 'png': {}, 'jpg': {}}

Sample = Mapping[str, bytes]  # members by extension


def picture(color: tuple[int, ...], seed: int, kind: str = 'png') -> bytes:
    """An encoded picture of about one color."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(24, 40, 2)
    pixels = np.array(color) + rng.normal(0, 60, (height, width, 3))
    array = np.clip(pixels, 0, 255).astype(np.uint8)
    return encode(array, {'jpg': 'JPEG'}.get(kind, kind.upper()), **FORMATS[kind])


def npy(values: Sequence[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write(
    folder: Path,
    samples: Sequence[Sample],
    *,
    split: str = 'test',
    shards: int = 2,
    names: Sequence[str] = (),
    templates: Sequence[str] = (),
    kind: str = '',
) -> Path:
    """Writes a split of a set; returns the folder of the set."""
    (folder / split).mkdir(parents=True)
    (folder / split / 'nshards.txt').write_text(f'{shards}\n')
    parts = np.array_split(np.arange(len(samples)), shards)
    for shard, part in enumerate(parts):
        with tarfile.open(folder / split / f'{shard}.tar', 'w') as tar:
            for i in part:
                for extension, data in samples[i].items():
                    member = tarfile.TarInfo(f's{i:07}.{extension}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    files = {
        'classnames.txt': '\n'.join(names),
        'zeroshot_classification_templates.txt': '\n'.join(templates),
        'dataset_type.txt': kind,
    }
    for name, text in files.items():
        if text:
            (folder / name).write_text(f'{text}\n')
    return folder


def classes(folder: Path, count: int = 42, **options) -> Path:
    """A set of one label per picture, its color."""
    samples = []
    for i in range(count):
        kind = [*FORMATS][i % len(FORMATS)]
        label = i % len(COLORS)
        image = picture([*COLORS.values()][label], i, kind)
        samples.append({'cls': b'%d' % label, kind: image})
    return write(folder, samples, **{'names': [*COLORS], 'templates': TEMPLATES} | options)


def several_classes(folder: Path, count: int = 40) -> Path:
    """A set of pictures whose halves have two colors, or the same; each has a 0 or 1 per class."""
    rng, samples = np.random.default_rng(0), []
    for _ in range(count):
        own = rng.integers(len(COLORS), size=2)
        rows = [np.array([*COLORS.values()][k]) for k in own]
        pixels = np.repeat(np.array(rows)[:, None], 28, axis=1).repeat(14, axis=0)
        pixels = np.clip(pixels + rng.normal(0, 40, pixels.shape), 0, 255).astype(np.uint8)
        marks = npy([int(k in own) for k in range(len(COLORS))])
        samples.append({'png': encode(pixels), 'npy': marks})
    return write(folder, samples, names=[*COLORS], templates=TEMPLATES, kind='multilabel')


def captions(folder: Path, count: int = 30) -> Path:
    """A set of pictures with two captions each."""
    samples = []
    for i in range(count):
        name = [*COLORS][i % len(COLORS)]
        texts = f'a {name} picture number {i}\nsomething {name} and {i * i}'
        samples.append({'webp': picture(COLORS[name], i, 'webp'), 'txt': texts.encode()})
    return write(folder, samples, kind='retrieval')


def regions(folder: Path, count: int = 42) -> Path:
    """A set as those of WILDS: a label, and the region, year and label again in an array."""
    samples = []
    for i in range(count):
        label = i % len(COLORS)
        image = picture([*COLORS.values()][label], i)
        samples.append({'cls': b'%d' % label, 'npy': npy([i % 3 + 9, i % 2, label]), 'png': image})
    return write(folder, samples, names=[*COLORS], templates=TEMPLATES)


def faces(folder: Path, count: int = 24) -> Path:
    """A set as FairFace: several questions, whose answers are in an array."""
    samples = []
    for i in range(count):
        answers = [i % 4, i % 2, i % 3, int(i % 3 > 0)]
        samples.append({'png': picture((20 * (i % 7), 90, 80), i), 'npy': npy(answers)})
    names = [f'age:{text}' for text in ('a baby', 'a child', 'an adult', 'an old person')]
    names += ['gender:man', 'gender:woman', 'race:one', 'race:two', 'race:three']
    templates = ['race:{c}', 'age:a photo of {c}.', 'gender:a photo of a {c}.', 'gender:a {c}.']
    return write(folder, samples, names=names, templates=templates)
