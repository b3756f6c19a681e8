"""Training examples: filter, augment, choose captions; bad records are replaced."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.data.augment import Augment
from clip_jax.data.captions import Captions
from clip_jax.data.errors import BAD_RECORD_KINDS, FILTERED, BadRecord
from clip_jax.data.image import upright
from clip_jax.data.image.opening import MAX_PIXELS
from clip_jax.data.patches import Patches
from clip_jax.data.sources import Source, with_fields
from clip_jax.data.stored_embeddings import StoredEmbeddings

Embeddings = Mapping[str, Mapping[str, np.ndarray]]  # by name, then 'image' and 'text'
_OF_THREAD = threading.local()
TRIES = 32  # consecutive records that may be bad or filtered out before a run stops


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which records are used for training; 0 sets no limit.

    Attributes:
        min_side: minimum of the shorter side, in pixels.
        max_aspect: maximum of longer side / shorter side.
        min_caption: minimum length of a caption, in characters.
        max_caption: maximum length of a caption, in characters.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_caption: int = 0
    max_caption: int = 0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (name == 'max_aspect' and 0 < value < 1):
                raise ValueError(f'data.filter.{name} is {value}; expected 0 (none) or more')

    def image(self, height: int, width: int) -> None:
        """Raises BadRecord if the size of an image is outside of the limits."""
        shorter, longer = sorted((height, width))
        if shorter < self.min_side:
            raise BadRecord('small_side', f'{width} x {height} pixels; min_side {self.min_side}')
        if self.max_aspect and longer > self.max_aspect * shorter:
            raise BadRecord('long_aspect', f'{width} x {height}; max_aspect {self.max_aspect}')

    def captions(self, texts: Sequence[str]) -> Sequence[str]:
        """Returns the texts of an allowed length; BadRecord if there are texts, but no such one."""
        most = self.max_caption or float('inf')
        wanted = [text for text in texts if self.min_caption <= len(text) <= most]
        if texts and not wanted:
            lengths = ', '.join(str(len(text)) for text in texts[:5])
            raise BadRecord('caption_length', f'captions of {lengths} characters')
        return wanted


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes training examples from records.

    The randomness of an example depends only on seed, record and epoch. A record that is bad or
    filtered out is replaced by another one of the same part of the source, which is drawn with the
    random numbers of the example.

    Attributes:
        source: the data.
        seed: the seed of the run.
        augment: augmentation of images.
        filter: which records are used.
        captions: how captions are chosen.
        parts: first record and end of each part of the source.
        max_pixels: images with more are bad records.
        stored: embeddings that other models gave the data, by name.
    """

    source: Source
    seed: int
    augment: Augment
    filter: Filter
    captions: Captions
    parts: tuple[tuple[int, int], ...]
    max_pixels: int = MAX_PIXELS
    stored: Mapping[str, StoredEmbeddings] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        epoch: int,
        record: int,
        image: np.ndarray | Patches,
        bad: np.ndarray,
        embeddings: Embeddings | None = None,
    ) -> list[str]:
        """Makes one example.

        Args:
            epoch: the epoch of the record's part of the source.
            record: the index of the record.
            image: uint8 [size, size, 3] or Patches of one blank image, overwritten with the
                augmented image.
            bad: int64 [TRIES], -1 everywhere, overwritten with the records that were replaced (see
                `bad_records`).
            embeddings: by name, 'image' and 'text', float32 [D] each, overwritten with the stored
                embeddings of the image and of the first caption.

        Returns:
            The captions, then the hard negatives.

        Raises:
            ValueError: if TRIES records in sequence cannot be used.
        """
        rng = _generator(self.seed, record, epoch)
        reason = ''
        for i in range(TRIES):
            if i:
                start, stop = next(part for part in self.parts if record < part[1])
                record = int(rng.integers(start, stop))
            try:
                return self._example(record, rng, image, embeddings or {})
            except BadRecord as error:
                bad[i] = record * len(BAD_RECORD_KINDS) + BAD_RECORD_KINDS.index(error.kind)
                reason = str(error)  # the error itself would keep all that its traceback holds
            except ValueError as error:
                raise ValueError(f'{self.source.where(record)}: {error}') from error
        counts = describe_counts(count(bad))
        raise ValueError(
            f'{TRIES} consecutive records cannot be used ({counts}); the last is '
            f'{self.source.where(record)}: {reason}. Look at the data with clip-jax data inspect, '
            'or relax data.filter'
        )

    def _example(
        self,
        record: int,
        rng: np.random.Generator,
        image: np.ndarray | Patches,
        embeddings: Embeddings,
    ) -> list[str]:
        example = with_fields(self.source, self.source[record])
        texts = self.captions.choose(example, rng, self.filter.captions)
        data = example.get('image', b'')
        shape = upright.measure(data, max_pixels=self.max_pixels)
        self.filter.image(*shape)
        self.augment(data, shape, rng, image, max_pixels=self.max_pixels)
        for name, stored in self.stored.items():
            for side, found in stored.find(record, data, texts[0]).items():
                embeddings[name][side][:] = found
        return texts


def _generator(seed: int, record: int, epoch: int) -> np.random.Generator:
    """Returns the random numbers of an example.

    In a counter-based generator every key and counter is an independent stream. Each thread reuses
    one generator, since creating one takes longer than setting its state.
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
    """Returns (index, kind) of the records that were replaced, from a batch's `bad` [b, TRIES]."""
    # Fast for the usual case, in which all are -1.
    return [
        (x // len(BAD_RECORD_KINDS), BAD_RECORD_KINDS[x % len(BAD_RECORD_KINDS)])
        for x in bad[bad >= 0].tolist()
    ]


def count(bad: np.ndarray) -> Counter[str]:
    """Counts replaced records by kind."""
    return Counter(kind for _, kind in bad_records(bad))


def bad_fraction(counts: Counter[str], seen: int) -> float:
    """Returns the fraction of bad records among all that were read; filtered ones are not bad."""
    bad = sum(n for kind, n in counts.items() if kind not in FILTERED)
    return bad / max(1, seen + bad)


def describe_counts(counts: Mapping[str, Any]) -> str:
    """Returns counts by kind as text, largest first."""
    return ', '.join(f'{kind} {n:,}' for kind, n in sorted(counts.items(), key=lambda x: -x[1]))
