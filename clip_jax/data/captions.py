"""Which captions of a record a training example has: by field, several of them, hard negatives."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.data.errors import BadRecord
from clip_jax.data.sources import Mixture, Source, text_fields

# How one of several captions is chosen.
RULES = ('random', 'first', 'longest')


@dataclasses.dataclass(frozen=True)
class Captions:
    """How the captions of an example are chosen.

    Attributes:
        rule: which caption of a field, one of RULES.
        fields: the fields of captions with their probabilities, which are divided by the sum of
            those that a record has; {}: all texts together, but those of negative_fields.
        negative_fields: the fields of hard negatives: captions that are wrong, but look right.
        negatives: the number of hard negatives.
        count: the number of captions.
    """

    rule: str = 'random'
    fields: Mapping[str, float] = dataclasses.field(default_factory=dict)
    negative_fields: Sequence[str] = ()
    negatives: int = 0
    count: int = 1

    def __post_init__(self):
        lookup.check(self.rule, RULES, what='data.caption')
        for name, share in self.fields.items():
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not 0 < share < math.inf:
                raise ValueError(
                    f'data.caption_fields.{name} is {share!r}; expected a probability above 0. '
                    'Leave out a field that is not used'
                )
        if isinstance(self.negative_fields, str):
            raise ValueError(
                f'data.negative_fields is {self.negative_fields!r}; expected names of fields, '
                f'such as ({self.negative_fields!r},)'
            )
        if both := sorted({*self.fields} & {*self.negative_fields}):
            raise ValueError(
                f'data: {", ".join(both)} is in caption_fields and in negative_fields; texts of a '
                'field are either captions or hard negatives. Choose one'
            )
        counts = {'hard_negatives': (self.negatives, 0), 'captions_per_image': (self.count, 1)}
        for key, (value, least) in counts.items():
            if value < least:
                raise ValueError(f'data.{key} is {value}; expected at least {least}')
        if self.negatives and not self.negative_fields:
            raise ValueError(
                f'data.hard_negatives is {self.negatives}, and data.negative_fields is empty; name '
                'the fields with hard negatives there'
            )

    @property
    def total(self) -> int:
        """The number of texts of an example, hard negatives included."""
        return self.count + self.negatives

    def check(self, source: Source) -> None:
        """Raises ValueError if a field does not exist, or a source of a mixture has none of the
        fields that its examples need.
        """
        if not self.fields and not self.negative_fields:
            return
        there = text_fields(source)
        if not there:
            raise ValueError(
                f'data.caption_fields and data.negative_fields name fields, but {source} has none; '
                'leave both empty, or give its class text_fields (see docs/extend.md)'
            )
        for key, names in (
            ('caption_fields', self.fields),
            ('negative_fields', self.negative_fields),
        ):
            for name in names:
                lookup.check(name, there, what=f'data.{key}: the fields of {source}')
        needed = {'caption_fields': [*self.fields]}
        needed['negative_fields'] = list(self.negative_fields) if self.negatives else []
        for part in source.sources if isinstance(source, Mixture) else ():
            for key, names in needed.items():
                if names and not {*names} & {*text_fields(part)}:
                    raise ValueError(
                        f'data.{key}: {part} has none of {", ".join(names)}; its fields are '
                        f'{", ".join(text_fields(part)) or "unknown"}. Name one of these as well'
                    )

    def choose(
        self,
        example: Mapping[str, Any],
        rng: np.random.Generator,
        wanted: Callable[[Sequence[str]], Sequence[str]] = lambda texts: texts,
    ) -> list[str]:
        """Returns the texts of an example: its captions, then its hard negatives.

        Args:
            example: a record of a source.
            rng: random numbers.
            wanted: the texts of a sequence that may be used; BadRecord if there are none.

        Raises:
            BadRecord: 'no_caption' or 'no_negative'.
        """
        fields = example.get('fields', {'': example.get('texts', ())})
        if self.fields:
            pools = [(share, fields[name]) for name, share in self.fields.items() if name in fields]
        elif self.negative_fields:
            others = [own for name, own in fields.items() if name not in self.negative_fields]
            pools = [(1.0, list(dict.fromkeys(text for own in others for text in own)))]
        else:
            pools = [(1.0, example.get('texts', ()))]
        if not any(texts for _, texts in pools):
            raise BadRecord('no_caption', f'the image has no text{_among(self.fields)}')
        texts = draw(_filtered(pools, wanted), self.count, rng, self.rule)
        if not self.negatives:
            return texts
        negatives = [text for name in self.negative_fields for text in fields.get(name, ())]
        if not negatives:
            raise BadRecord('no_negative', f'the image has no text{_among(self.negative_fields)}')
        return texts + draw([(1.0, wanted(negatives))], self.negatives, rng)


def _among(fields: Sequence[str] | Mapping[str, float]) -> str:
    return f' in {", ".join(fields)}' if fields else ''


def _filtered(
    pools: Sequence[tuple[float, Sequence[str]]],
    wanted: Callable[[Sequence[str]], Sequence[str]],
) -> list[tuple[float, Sequence[str]]]:
    """The pools with their wanted texts; those that have none are left out, unless all are."""
    found, error = [], None
    for share, texts in pools:
        try:
            if kept := wanted(texts):
                found.append((share, kept))
        except BadRecord as unwanted:
            error = unwanted
    if not found and error:
        raise error
    return found


def draw(
    pools: Sequence[tuple[float, Sequence[str]]],
    count: int,
    rng: np.random.Generator,
    rule: str = 'random',
) -> list[str]:
    """Draws texts without replacement; when all are drawn, they come again in the same order.

    Args:
        pools: texts with the probability of taking one of them, relative to the other pools.
        count: the number of texts.
        rng: random numbers.
        rule: which text of a pool: 'random' (uniform), 'first' or 'longest'.
    """
    left = [(share, list(texts)) for share, texts in pools if texts]
    drawn: list[str] = []
    while left and len(drawn) < count:
        number = 0
        if len(left) > 1:
            ends = np.cumsum([share for share, _ in left])
            place = int(np.searchsorted(ends, rng.random() * ends[-1], 'right'))
            number = min(place, len(left) - 1)  # a product may be rounded up to the last end
        texts = left[number][1]
        if rule == 'longest':
            place = max(range(len(texts)), key=lambda k: len(texts[k]))
        else:
            place = 0 if rule == 'first' else int(rng.integers(len(texts)))
        drawn.append(texts.pop(place))
        left = [pool for pool in left if pool[1]]
    return [drawn[k % len(drawn)] for k in range(count)]
