"""One row of a batch: a record's image and one of its captions, or what takes a bad one's place."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data.augment import Augment
from clip_jax.data.errors import BAD_RECORD_KINDS, FILTERED, BadRecord
from clip_jax.data.image import upright
from clip_jax.data.sources import Source

_OF_THREAD = threading.local()
# The rules by which one of several captions is taken.
CAPTION_RULES = ('random', 'first', 'longest')
TRIES = 32  # records in a row that may be bad or filtered out before a run stops


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which records are trained on; 0 asks for nothing."""

    min_side: int = 0  # pixels of the shorter side
    max_aspect: float = 0.0  # longer side / shorter side
    min_caption: int = 0  # characters
    max_caption: int = 0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (name == 'max_aspect' and 0 < value < 1):
                raise ValueError(f'data.filter.{name} is {value}; expected 0 (none) or more')

    def image(self, height: int, width: int) -> None:
        """Raises BadRecord for an image of a size that is not wanted."""
        shorter, longer = sorted((height, width))
        if shorter < self.min_side:
            raise BadRecord('small_side', f'{width} x {height} pixels; min_side {self.min_side}')
        if self.max_aspect and longer > self.max_aspect * shorter:
            raise BadRecord('long_aspect', f'{width} x {height}; max_aspect {self.max_aspect}')

    def captions(self, texts: Sequence[str]) -> Sequence[str]:
        """Returns the texts of a wanted length; BadRecord if there are some, but none of these."""
        most = self.max_caption or float('inf')
        wanted = [text for text in texts if self.min_caption <= len(text) <= most]
        if texts and not wanted:
            lengths = ', '.join(str(len(text)) for text in texts[:5])
            raise BadRecord('caption_length', f'captions of {lengths} characters')
        return wanted


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes images and texts of rows.

    What is random in a row depends on seed, record and epoch alone. A record that cannot be used,
    or that the filter leaves out, gives its place to another one of the same part of the source,
    drawn with the row's own random numbers; `bad` says which gave way (see `troubles`).
    """

    source: Source
    seed: int
    augment: Augment
    filter: Filter
    caption: str  # the rule by which one of several captions is taken
    parts: tuple[tuple[int, int], ...]  # first record and end of each part of the source

    def __call__(self, epoch: int, record: int, image: np.ndarray, bad: np.ndarray) -> str:
        """Puts a record's image into `image`, uint8 [size, size, 3], notes in `bad`, int64 [TRIES]
        of -1, which records gave way, and returns a caption.
        """
        rng = _generator(self.seed, record, epoch)
        reason = ''
        for i in range(TRIES):
            if i:
                start, stop = next(part for part in self.parts if record < part[1])
                record = int(rng.integers(start, stop))
            try:
                return self._row(record, rng, image)
            except BadRecord as error:
                bad[i] = record * len(BAD_RECORD_KINDS) + BAD_RECORD_KINDS.index(error.kind)
                reason = str(error)  # the error itself would keep all that its traceback holds
            except ValueError as error:
                raise ValueError(f'{self.source.where(record)}: {error}') from error
        counts = describe_counts(count(bad))
        raise ValueError(
            f'{TRIES} records drawn one after the other cannot be used ({counts}); the last is '
            f'{self.source.where(record)}: {reason}. Look at the data with clip-jax data inspect, '
            'or relax data.filter'
        )

    def _row(self, record: int, rng: np.random.Generator, image: np.ndarray) -> str:
        example = self.source[record]
        texts = self.filter.captions(example.get('texts', ()))
        text = choose_caption(texts, rng, self.caption)
        data = example.get('image', b'')
        shape = upright.measure(data)
        self.filter.image(*shape)
        self.augment(data, shape, rng, image)
        return text


def choose_caption(texts: Sequence[str], rng: np.random.Generator, rule: str = 'random') -> str:
    """Returns one of the texts by a rule of CAPTION_RULES; of 'random', all are equally likely.
    BadRecord if there is none.
    """
    if not texts:
        raise BadRecord('no_caption', 'no text belongs to this image')
    if rule == 'longest':
        return max(texts, key=len)
    return texts[0 if rule == 'first' else rng.integers(len(texts))]


def _generator(seed: int, record: int, epoch: int) -> np.random.Generator:
    """The random numbers of a row: of a counter-based generator, every key and every counter is a
    stream of its own. A thread has one generator, since to make one takes longer than to set it.
    """
    if not hasattr(_OF_THREAD, 'generator'):
        _OF_THREAD.generator = np.random.Generator(np.random.Philox(0))
    bits = _OF_THREAD.generator.bit_generator
    bits.state = {
        'bit_generator': 'Philox',
        'state': {
            'key': np.array([record, seed % 2**64], np.uint64),
            'counter': np.array([0, 0, 0, epoch], np.uint64),
        },
        'buffer': np.zeros(4, np.uint64),
        'buffer_pos': 4,  # used up
        'has_uint32': 0,
        'uinteger': 0,
    }
    return _OF_THREAD.generator


def bad_records(bad: np.ndarray) -> list[tuple[int, str]]:
    """Returns (number of a record, its kind) of the records that gave way, from rows' `bad`."""
    # Almost all are -1, and every batch of training comes here.
    return [
        (x // len(BAD_RECORD_KINDS), BAD_RECORD_KINDS[x % len(BAD_RECORD_KINDS)])
        for x in bad[bad >= 0].tolist()
    ]


def count(bad: np.ndarray) -> Counter[str]:
    """Counts the records that gave way by kind."""
    return Counter(kind for _, kind in bad_records(bad))


def bad_fraction(counts: Counter[str], seen: int) -> float:
    """Returns how much of what was read was bad; what a filter left out is not."""
    wrong = sum(n for kind, n in counts.items() if kind not in FILTERED)
    return wrong / max(1, seen + wrong)


def describe_counts(counts: dict[str, Any]) -> str:
    """Counts by kind for people, largest first."""
    return ', '.join(f'{kind} {n:,}' for kind, n in sorted(counts.items(), key=lambda x: -x[1]))
