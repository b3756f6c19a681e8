"""Data set statistics of a sample of records, and a check of every record."""

import collections
import contextlib
import functools
import json
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags

from clip_jax import lookup
from clip_jax.data.errors import HARMLESS, BadRecord
from clip_jax.data.image import opening
from clip_jax.data.image.opening import MAX_PIXELS
from clip_jax.data.sources import Source, text_fields, with_fields
from clip_jax.data.tools.scan import ERRORS, check, error_message, in_order, labels_of
from clip_jax.runtime import atomic
from clip_jax.runtime.messages import printable
from clip_jax.runtime.progress import Progress

CONTEXT = 77  # context length of CLIP, in tokens
PART = 256  # records in memory at a time
PICTURES = 24  # sample images with their captions
PICTURE_SIZE = 320  # pixels of their longer side
LISTED = 20  # bad records in the report
COMMON = 20  # most frequent labels that are listed


class Failure(NamedTuple):
    """A record that cannot be used."""

    record: int
    kind: str  # one of BAD_RECORD_KINDS, or 'error', which stops a run
    where: str
    message: str  # starts with `where`


class Picture(NamedTuple):
    """A sample image with its captions."""

    image: np.ndarray  # uint8 [H, W, 3]
    texts: Sequence[str]
    label: str


def failures(
    source: Source,
    *,
    decode: bool,
    threads: int,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Failure]:
    """Reads all records and yields those that cannot be used, in order.

    Args:
        source: the data.
        decode: whether to decode every image.
        threads: how many threads read and decode.
        max_pixels: images with more cannot be used.
        advance: is called after each record.
    """
    cv2.setNumThreads(0)  # each thread has an image of its own

    def look(i: int) -> Failure | None:
        try:
            check(source[i], decode=decode, max_pixels=max_pixels)
        except ERRORS as error:
            return _failure(source, i, error)
        return None

    for failure in in_order(look, 0, len(source), threads=threads):
        advance()
        if failure:
            yield failure


def verify(
    source: Source,
    *,
    decode: bool,
    threads: int,
    out: pathlib.Path | None,
    say: Callable[[str], None],
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Reads all records and lists those that cannot be used.

    Args:
        source: the data.
        decode: whether to decode every image.
        threads: how many threads read and decode.
        out: a JSONL file that lists all such records; None for none.
        say: is called with a line for each of the first LISTED.
        max_pixels: images with more cannot be used.

    Returns:
        Counts and speed. `all_usable` is false if there are such records, or if the source left out
        anything but files of other kinds.
    """
    start, kinds = time.monotonic(), Counter()
    opening.check_max_pixels(max_pixels)
    with Progress('verify', len(source)) as progress, _lines(out) as write:
        find = functools.partial(failures, source, decode=decode, threads=threads)
        for failure in find(max_pixels=max_pixels, advance=progress.advance):
            kinds[failure.kind] += 1
            write(json.dumps(failure._asdict(), ensure_ascii=False) + '\n')
            if kinds.total() <= LISTED:
                say(printable(f'{failure.kind}: {failure.message}'))
    seconds = time.monotonic() - start
    # In a mixture the kind comes after the source.
    lost = [kind for kind in source.skipped if kind.rpartition(': ')[2] not in HARMLESS]
    return {
        'records': len(source),
        'bad': dict(kinds.most_common()),
        'skipped': {kind: found._asdict() for kind, found in source.skipped.items()},
        'all_usable': not kinds and not lost,
        'seconds': seconds,
        'records_per_second': len(source) / seconds,
    }


@contextlib.contextmanager
def _lines(path: pathlib.Path | None) -> Iterator[Callable[[str], Any]]:
    """Yields a function that writes text to a new file, or nowhere; all or nothing."""
    if path is None:
        yield lambda text: None
        return
    with atomic.writing(path) as file:
        yield file.write


def _failure(source: Source, i: int, error: Exception) -> Failure:
    kind = error.kind if isinstance(error, BadRecord) else 'error'
    return Failure(i, kind, source.where(i), error_message(source, i, error))


def inspect(
    source: Source, *, sample: int, threads: int, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, Any], dict[str, list[float]], list[Picture]]:
    """Computes statistics of up to `sample` evenly spaced records.

    Args:
        source: the data.
        sample: how many records are read.
        threads: how many threads read and decode.
        max_pixels: images with more cannot be used.

    Returns:
        report: the statistics, JSON values.
        values: the values behind them, by name.
        pictures: up to PICTURES sample images.
    """
    if sample < 1:
        raise ValueError(f'sample is {sample}; expected at least 1')
    opening.check_max_pixels(max_pixels)
    cv2.setNumThreads(0)
    count = min(sample, len(source))
    places = [i * len(source) // count for i in range(count)]
    shown = {places[i * count // PICTURES] for i in range(PICTURES)}
    found = _Found(source, max_pixels)
    look_at = functools.partial(_look, max_pixels=max_pixels)
    look_at((_read(source, 0), False))  # warm-up: loading the decoders should not be timed
    with Progress('inspect', count) as progress:
        for start in range(0, count, PART):
            part = places[start : start + PART]
            start_time = time.perf_counter()
            examples = _all(functools.partial(_read, source), part, threads)
            read = time.perf_counter()
            kept = [i in shown for i in part]
            looks = _all(look_at, list(zip(examples, kept, strict=True)), threads)
            found.seconds += np.array([read - start_time, time.perf_counter() - read])
            for i, example, look in zip(part, examples, looks, strict=True):
                found.add(i, example, look)
            progress.advance(len(part))
    report = {
        'records': len(source),
        'skipped': {kind: found._asdict() for kind, found in source.skipped.items()},
        'sample': count,
        **found.report(),
    }
    return report, found.values, found.pictures


def _all(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    return list(in_order(lambda k: function(items[k]), 0, len(items), threads=threads))


def _read(source: Source, i: int) -> dict[str, Any] | Exception:
    """Returns record i, or the error of reading it."""
    try:
        return source[i]
    except ERRORS as error:
        return error


def _look(
    item: tuple[dict[str, Any] | Exception, bool], *, max_pixels: int
) -> tuple[tuple[int, int], np.ndarray | None] | Exception:
    """Checks a record and returns (height, width) and a thumbnail of its image, or the error.

    An item is a record, or the error of reading it, and whether to make a thumbnail.
    """
    example, keep = item
    if isinstance(example, Exception):
        return example
    try:
        pixels = check(example, decode=True, max_pixels=max_pixels)
    except ERRORS as error:
        return error
    assert pixels is not None  # since it was decoded
    shape = pixels.shape[:2]
    if keep and max(shape) > PICTURE_SIZE:
        width, height = (max(1, side * PICTURE_SIZE // max(shape)) for side in shape[::-1])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return shape, pixels if keep else None


class _Found:
    """Statistics of the records so far."""

    def __init__(self, source: Source, max_pixels: int):
        self.values: dict[str, list[float]] = collections.defaultdict(list)
        self.pictures: list[Picture] = []
        self.seconds = np.zeros(2)  # of reading and of decoding
        self._source, self._max_pixels = source, max_pixels
        self._bad: list[Failure] = []
        self._formats, self._modes, self._labels = Counter(), Counter(), Counter()
        self._tokenize = lookup.module('tokenizers', 'bpe').create((), context_length=CONTEXT + 1)
        self._too_long = self._seen = self._with_label = 0
        self._fields = {name: Counter(records=0, captions=0) for name in text_fields(source)}

    def add(self, i: int, example: Any, look: Any) -> None:
        """Adds record i, given the results of `_read` and `_look`."""
        self._seen += 1
        if isinstance(look, Exception):
            self._bad.append(_failure(self._source, i, look))
            return
        (height, width), pixels = look
        texts, data = example.get('texts', []), example['image']
        labels = [self._name(label) for label in labels_of(example)]
        if pixels is not None:
            self.pictures.append(Picture(pixels, texts, ', '.join(labels)))
        for what, value in (
            ('width', width),
            ('height', height),
            ('aspect', width / height),
            ('kilobytes', len(data) / 1000),
            ('captions', len(texts)),
        ):
            self.values[what].append(value)
        self.values['characters'] += map(len, texts)
        if texts:
            # Padding is 0, and the last token of a text is not.
            self._too_long += int((self._tokenize(texts)[:, -1] != 0).sum())
        fields = with_fields(self._source, example).get('fields', {})
        for name, counts in self._fields.items():
            counts.update(records=name in fields, captions=len(fields.get(name, ())))
        self._labels.update(labels)
        self._with_label += bool(labels)
        self._look_at_header(data)

    def _name(self, label: int) -> str:
        names = self._source.label_names
        return names[label] if label < len(names) else str(label)

    def _look_at_header(self, data: bytes | np.ndarray) -> None:
        if isinstance(data, np.ndarray):
            self._formats['array'] += 1
            return
        try:
            with opening.open_image(data, max_pixels=self._max_pixels) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                moves = getattr(image, 'is_animated', False)
                self._formats[image.format] += 1
                self._modes[f'{image.mode}{", turned" * turned}{", animated" * moves}'] += 1
        except (OSError, ValueError, SyntaxError):  # OpenCV reads formats that Pillow does not
            self._formats['unknown'] += 1

    def report(self) -> dict[str, Any]:
        """Returns the statistics as JSON values."""
        read, decoded = self._seen / np.maximum(self.seconds, 1e-9)
        return {
            'bad': dict(Counter(failure.kind for failure in self._bad)),
            'bad_records': [failure._asdict() for failure in self._bad[:LISTED]],
            'formats': dict(self._formats.most_common()),
            'modes': dict(self._modes.most_common()),
            **{what: _spread(values) for what, values in self.values.items() if values},
            f'beyond_{CONTEXT}_tokens': self._too_long / max(1, len(self.values['characters'])),
            'several_captions': sum(count > 1 for count in self.values['captions']),
            'fields': {name: dict(counts) for name, counts in self._fields.items()},
            'with_label': self._with_label,
            'classes': len(self._source.label_names) or len(self._labels),
            'labels': dict(self._labels.most_common(COMMON)),
            'read_per_second': float(read),
            'decoded_per_second': float(decoded),
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    least, median, most, largest = np.percentile(values, (0, 50, 95, 100)).tolist()
    return {'min': least, 'median': median, '95%': most, 'max': largest}
