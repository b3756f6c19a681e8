"""What a model says of images that need no labels, as a CSV file: zero-shot predictions (`clip-jax
classify`) and captions (`clip-jax caption`).
"""

import contextlib
import csv
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax import build, pretrained, prompts
from clip_jax.data.errors import BadRecord
from clip_jax.data.examples import describe_counts
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, error_message, in_order
from clip_jax.models import captions
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

    def classify(images: Sequence[np.ndarray]) -> list[list[str]]:
        found = clip.classify(images, names, templates=filled, activation=activation)
        return [_best(one, names, top_k) for one in found]

    classify([])  # what the model cannot do is found before images are read
    columns = _columns(top_k)
    summary = write_rows(clip, source, out, threads, columns, classify, what='classify')
    return {'labels': len(names), **summary, **_speed(source, time.monotonic() - began)}


def write_captions(
    model: str, source: Source, out: pathlib.Path, dtype: str, threads: int, **options: Any
) -> dict[str, Any]:
    """Writes a caption for each image of a data set, with a row for each record of it.

    The columns are `where`, `caption` and `bad`, as in `write`.

    Args:
        model: a run directory or a checkpoint of any known layout, with a caption decoder.
        source: the data; labels and captions in it are not read.
        out: the CSV file to write, complete or not at all.
        dtype: the compute dtype: 'auto', 'float32' or 'bfloat16'.
        threads: how many threads read and decode images.
        **options: how captions are generated, see captions.settings; and `seed`.

    Returns:
        A summary: counts and seconds.

    Raises:
        ValueError: an option is wrong, the model has no decoder, or no record can be used.
    """
    began = time.monotonic()
    clip = pretrained.load(model, dtype=dtype)

    def caption(images: Sequence[np.ndarray]) -> list[list[str]]:
        return [[text] for text in clip.caption(images, **options)]

    captions.settings(clip, **build.given(options, 'seed'))  # before images are read
    summary = write_rows(clip, source, out, threads, ['caption'], caption, what='caption')
    return {**summary, **_speed(source, time.monotonic() - began)}


def write_rows(
    clip: Clip,
    source: Source,
    out: pathlib.Path,
    threads: int,
    columns: Sequence[str],
    of_images: Callable[[Sequence[np.ndarray]], list[list[str]]],
    *,
    what: str,
) -> dict[str, Any]:
    """Writes a CSV file with a row for each record of a data set, of what a model says of it.

    Args:
        clip: the model.
        source: the data.
        out: the file, which appears only when it is complete.
        threads: how many threads read and decode images.
        columns: the names of what `of_images` returns.
        of_images: preprocessed images -> a row for each.
        what: what is done, for the progress bar.

    Returns:
        Counts of images, and of bad and skipped records.

    Raises:
        ValueError: no record can be used.
    """
    bad: Counter[str] = Counter()
    with atomic.writing(out) as file, Progress(what, len(source), unit='images') as progress:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['where', *columns, 'bad'])
        for records in _read(clip, source, threads):
            found = iter(of_images([one.image for one in records if one.image is not None]))
            for one in records:
                row = next(found) if not one.bad else [''] * len(columns)
                rows.writerow([one.where, *row, one.bad])
            bad.update(one.bad for one in records if one.bad)
            progress.advance(len(records))
        if bad.total() == len(source):
            raise ValueError(f'{source}: none of its records can be used: {describe_counts(bad)}')
    return {
        'images': len(source) - bad.total(),
        'bad_records': dict(bad),
        'skipped': {kind: found.count for kind, found in source.skipped.items()},
    }


def _speed(source: Source, seconds: float) -> dict[str, float]:
    return {'seconds': seconds, 'images_a_second': len(source) / seconds}


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
