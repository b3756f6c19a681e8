"""What a source holds: numbers of a sample for people, and every record that cannot be used."""

import collections
import contextlib
import functools
import io
import json
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import Source
from clip_jax.data.tools.scan import ERRORS, check, error_message, in_order, labels_of
from clip_jax.runtime.progress import Progress

CONTEXT = 77  # tokens of a text that CLIP reads
PART = 256  # records in memory at a time
PICTURES = 24  # kept with their captions
PICTURE_SIZE = 320  # pixels of their longer side
SAID = 20  # bad records that are named to people
OTHER_FILE = 'other_file'  # what sources call a README among images
COMMON = 20  # labels that are counted by name


class Trouble(NamedTuple):
    """A record that cannot be used."""

    record: int
    kind: str  # one of bad.KINDS, or 'error': reading it ends a run
    where: str
    message: str  # begins with that


class Picture(NamedTuple):
    """A record to look at."""

    image: np.ndarray  # uint8 [H, W, 3]
    texts: Sequence[str]
    label: str


def troubles(
    source: Source, *, decode: bool, threads: int, advance: Callable[[], None] = lambda: None
) -> Iterator[Trouble]:
    """Reads all records and yields those that cannot be used, in their order; `advance` is called
    after each record.
    """
    cv2.setNumThreads(0)  # a thread here has one image at a time

    def look(i: int) -> Trouble | None:
        try:
            check(source[i], decode=decode)
        except ERRORS as error:
            return _trouble(source, i, error)
        return None

    for trouble in in_order(look, 0, len(source), threads=threads):
        advance()
        if trouble:
            yield trouble


def verify(
    source: Source,
    *,
    decode: bool,
    threads: int,
    out: pathlib.Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Reads all records, says which of the first SAID cannot be used, lists all in a file, one JSON
    a line, and returns counts.

    `all_usable` is false if there are such records, or if the source left out anything but files of
    other kinds.
    """
    begun, kinds = time.monotonic(), Counter()
    with Progress('verify', len(source)) as progress, _lines(out) as write:
        for trouble in troubles(source, decode=decode, threads=threads, advance=progress.advance):
            kinds[trouble.kind] += 1
            write(json.dumps(trouble._asdict(), ensure_ascii=False) + '\n')
            if kinds.total() <= SAID:
                say(f'{trouble.kind}: {trouble.message}')
    seconds = time.monotonic() - begun
    # A mixture names the source before the kind.
    lost = [kind for kind in source.left_out if kind.rpartition(': ')[2] != OTHER_FILE]
    return {
        'records': len(source),
        'bad': dict(kinds.most_common()),
        'left_out': {kind: found._asdict() for kind, found in source.left_out.items()},
        'all_usable': not kinds and not lost,
        'seconds': seconds,
        'records_per_second': len(source) / seconds,
    }


@contextlib.contextmanager
def _lines(path: pathlib.Path | None) -> Iterator[Callable[[str], Any]]:
    """Gives what writes text to a new file, or nowhere."""
    if path is None:
        yield lambda text: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        yield file.write


def _trouble(source: Source, i: int, error: Exception) -> Trouble:
    kind = error.kind if isinstance(error, BadRecord) else 'error'
    return Trouble(i, kind, source.where(i), error_message(source, i, error))


def inspect(
    source: Source, *, sample: int, threads: int
) -> tuple[dict[str, Any], dict[str, list[float]], list[Picture]]:
    """Looks at up to `sample` records, evenly spread over a source.

    Returns a report that JSON can hold, the values behind its numbers, and PICTURES of the records.
    """
    if sample < 1:
        raise ValueError(f'sample is {sample}; expected at least 1')
    cv2.setNumThreads(0)
    count = min(sample, len(source))
    places = [i * len(source) // count for i in range(count)]
    shown = {places[i * count // PICTURES] for i in range(PICTURES)}
    found = _Found(source)
    _look((_read(source, 0), False))  # decoders load what they need, which is not to be timed
    with Progress('inspect', count) as progress:
        for start in range(0, count, PART):
            part = places[start : start + PART]
            begun = time.perf_counter()
            examples = _all(functools.partial(_read, source), part, threads)
            read = time.perf_counter()
            kept = [i in shown for i in part]
            looks = _all(_look, list(zip(examples, kept, strict=True)), threads)
            found.seconds += np.array([read - begun, time.perf_counter() - read])
            for i, example, look in zip(part, examples, looks, strict=True):
                found.add(i, example, look)
            progress.advance(len(part))
    report = {
        'records': len(source),
        'left_out': {kind: found._asdict() for kind, found in source.left_out.items()},
        'sample': count,
        **found.report(),
    }
    return report, found.values, found.pictures


def _all(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    return list(in_order(lambda k: function(items[k]), 0, len(items), threads=threads))


def _read(source: Source, i: int) -> dict[str, Any] | Exception:
    """Returns record i, or why it cannot be read."""
    try:
        return source[i]
    except ERRORS as error:
        return error


def _look(
    item: tuple[dict[str, Any] | Exception, bool],
) -> tuple[tuple[int, int], np.ndarray | None] | Exception:
    """Returns height and width of a record's image and, to keep it, a small copy; or what is wrong.

    An item is a record, or why it cannot be read, and whether to keep a copy.
    """
    example, keep = item
    if isinstance(example, Exception):
        return example
    try:
        pixels = check(example, decode=True)
    except ERRORS as error:
        return error
    shape = pixels.shape[:2]
    if keep and max(shape) > PICTURE_SIZE:
        width, height = (max(1, side * PICTURE_SIZE // max(shape)) for side in shape[::-1])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return shape, pixels if keep else None


class _Found:
    """What is known of the records that were looked at so far."""

    def __init__(self, source: Source):
        self.values: dict[str, list[float]] = collections.defaultdict(list)
        self.pictures: list[Picture] = []
        self.seconds = np.zeros(2)  # of reading and of decoding
        self._source = source
        self._bad: list[Trouble] = []
        self._formats, self._modes, self._labels = Counter(), Counter(), Counter()
        self._tokenize = lookup.module('tokenizers', 'bpe').create((), context_length=CONTEXT + 1)
        self._too_long = self._seen = self._with_label = 0

    def add(self, i: int, example: Any, look: Any) -> None:
        """Counts record i, which is what `_read` and `_look` have made of it."""
        self._seen += 1
        if isinstance(look, Exception):
            self._bad.append(_trouble(self._source, i, look))
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
            with Image.open(io.BytesIO(data)) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                moves = getattr(image, 'is_animated', False)
                self._formats[image.format] += 1
                self._modes[f'{image.mode}{", turned" * turned}{", animated" * moves}'] += 1
        except (OSError, ValueError, SyntaxError):  # OpenCV reads formats that Pillow does not
            self._formats['unknown'] += 1

    def report(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        read, decoded = self._seen / np.maximum(self.seconds, 1e-9)
        return {
            'bad': dict(Counter(trouble.kind for trouble in self._bad)),
            'bad_records': [trouble._asdict() for trouble in self._bad[:SAID]],
            'formats': dict(self._formats.most_common()),
            'modes': dict(self._modes.most_common()),
            **{what: _spread(values) for what, values in self.values.items() if values},
            f'beyond_{CONTEXT}_tokens': self._too_long / max(1, len(self.values['characters'])),
            'with_label': self._with_label,
            'classes': len(self._source.label_names) or len(self._labels),
            'labels': dict(self._labels.most_common(COMMON)),
            'read_per_second': float(read),
            'decoded_per_second': float(decoded),
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    least, median, most, largest = np.percentile(values, (0, 50, 95, 100)).tolist()
    return {'min': least, 'median': median, '95%': most, 'max': largest}
