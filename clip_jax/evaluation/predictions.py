"""Zero-shot predictions for images that need no labels, as a CSV file: `clip-jax classify`."""

import contextlib
import csv
import pathlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax import pretrained, prompts
from clip_jax.data.errors import BadRecord
from clip_jax.data.examples import describe_counts
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, error_message, in_order
from clip_jax.pretrained import Clip, loaded
from clip_jax.runtime import atomic
from clip_jax.runtime.progress import Progress


class Record(NamedTuple):
    """A record that was read: its preprocessed image, or the kind of a bad record."""

    where: str
    image: np.ndarray | None
    bad: str = ''


def write(
    model: str,
    source: Source,
    out: pathlib.Path,
    labels: str | Sequence[str],
    dtype: str,
    threads: int,
    *,
    templates: prompts.Given = 'plain',
    key: str = '',
    top_k: int = 1,
    activation: str = 'auto',
) -> dict[str, Any]:
    """Classifies the images of a data set and writes a row for each record of it.

    The columns are `where` (a path, or a shard and a name), `label`, `probability`, for more
    predictions `label_2`, `probability_2` and so on, best first, and `bad`: the kind of a record
    that cannot be used, whose other columns are empty.

    Args:
        model: a run directory or a checkpoint of any known layout.
        source: the data; labels and captions in it are not read.
        out: the CSV file to write, complete or not at all.
        labels: names of the classes, or a file of them (see prompts.class_names).
        dtype: the compute dtype: 'auto', 'float32' or 'bfloat16'.
        threads: how many threads read and decode images.
        templates: a prompt set, a file of templates, a template such as 'a photo of a {}.', or a
            list of them (see prompts.templates).
        key: which entry of a JSON file of several sets to use.
        top_k: how many labels to write for each image.
        activation: 'softmax' (probabilities of an image sum to 1), 'sigmoid' (each label on its
            own, for SigLIP), or 'auto', which is what the model was trained with.

    Returns:
        A summary: counts and seconds.

    Raises:
        ValueError: an option is wrong, or no record can be used.
    """
    began = time.monotonic()
    if key and not any(isinstance(x, str) and x.endswith('.json') for x in (labels, templates)):
        raise ValueError(f'key is {key!r}, but neither labels nor templates is a JSON file')
    names = prompts.class_names(labels, key=key) if isinstance(labels, str) else [*labels]
    names = [*names.values()] if isinstance(names, dict) else names
    _check_options(names, top_k)
    filled = prompts.templates(templates, key=key)
    prompts.check_classes(names, filled)
    clip = pretrained.load(model, dtype=dtype)

    def classify(images: Sequence[np.ndarray]) -> np.ndarray:
        return clip.classify(images, names, templates=filled, activation=activation)

    classify([])  # what the model cannot do is found before images are read
    bad: Counter[str] = Counter()
    with atomic.writing(out) as file, Progress('classify', len(source), unit='images') as progress:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['where', *_columns(top_k), 'bad'])
        for records in _read(clip, source, threads):
            found = iter(classify([one.image for one in records if one.image is not None]))
            for one in records:
                best = _best(next(found), names, top_k) if not one.bad else [''] * 2 * top_k
                rows.writerow([one.where, *best, one.bad])
            bad.update(one.bad for one in records if one.bad)
            progress.advance(len(records))
        if bad.total() == len(source):
            raise ValueError(f'{source}: none of its records can be used: {describe_counts(bad)}')
    seconds = time.monotonic() - began
    return {
        'images': len(source) - bad.total(),
        'labels': len(names),
        'bad_records': dict(bad),
        'skipped': {kind: found.count for kind, found in source.skipped.items()},
        'seconds': seconds,
        'images_a_second': len(source) / seconds,
    }


def _check_options(names: Sequence[str], top_k: Any) -> None:
    """Raises ValueError if there are too few names for what is asked for."""
    if len(names) < 2:
        raise ValueError(
            f'labels: found {len(names)}, expected two or more, such as cat,dog or the file of a '
            'list of names'
        )
    if type(top_k) is not int or not 1 <= top_k <= len(names):
        raise ValueError(f'top_k is {top_k!r}; expected a number from 1 to {len(names)}, of labels')


def _columns(top_k: int) -> list[str]:
    suffixes = ['', *(f'_{k}' for k in range(2, top_k + 1))]
    return [name + suffix for suffix in suffixes for name in ('label', 'probability')]


def _best(probabilities: np.ndarray, names: Sequence[str], top_k: int) -> list[str]:
    """The labels with the highest probabilities and these, best first; equal ones in order."""
    order = np.argsort(-probabilities, kind='stable')[:top_k]
    return [text for k in order for text in (names[k], f'{probabilities[k]:.6g}')]


def _read(clip: Clip, source: Source, threads: int) -> Iterator[list[Record]]:
    """Yields the records in batches, read in threads ahead of the devices."""

    def read(i: int) -> Record:
        where = source.where(i)
        try:
            return Record(where, clip.preprocess(source[i].get('image', b'')))
        except BadRecord as error:
            return Record(where, None, error.kind)
        except ERRORS as error:
            raise ValueError(error_message(source, i, error)) from error

    ahead = loaded.AHEAD * clip.batch_size
    with contextlib.closing(in_order(read, 0, len(source), threads=threads, ahead=ahead)) as found:
        yield from loaded.groups(found, clip.batch_size)
