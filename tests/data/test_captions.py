"""Which captions an example has: by rule, by field, several of them, hard negatives."""

from collections import Counter

import numpy as np
import pytest
from support.listed import Listed

from clip_jax.data import sources
from clip_jax.data.captions import RULES, Captions, draw
from clip_jax.data.errors import BadRecord
from clip_jax.data.examples import Filter

RECORD = {
    'texts': ['a', 'b', 's', 'wrong', 'worse', 'worst'],
    'fields': {'caption': ['a', 'b'], 'synthetic': ['s'], 'swapped': ['wrong', 'worse', 'worst']},
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_text_is_chosen_equally_often(rng):
    chosen = Counter(draw([(1, ['a', 'b', 'c'])], 1, rng)[0] for _ in range(3000))
    assert all(900 < chosen[text] < 1100 for text in 'abc')


def test_texts_are_chosen_by_rule(rng):
    texts = ['one', 'three', 'seven', 'two']
    want = {'first': texts, 'longest': ['three', 'seven', 'one', 'two']}
    for rule, order in want.items():
        for count in (1, 3, 6):
            assert draw([(1, texts)], count, rng, rule) == (2 * order)[:count]
    for rule in RULES:
        with pytest.raises(BadRecord, match='no text') as error:
            Captions(rule).choose({'texts': []}, rng)
        assert error.value.kind == 'no_caption'


def test_several_texts_are_all_different_while_there_are_enough(rng):
    pairs = Counter()
    for _ in range(3000):
        pairs[tuple(draw([(1, ['a', 'b', 'c'])], 2, rng))] += 1
    assert len(pairs) == 6 and all(400 < count < 600 for count in pairs.values())
    for _ in range(20):
        texts = draw([(1, ['a', 'b', 'c'])], 8, rng)
        assert {*texts[:3]} == {*'abc'} and texts == [texts[k % 3] for k in range(8)]


def test_a_field_is_drawn_by_its_probability_among_those_of_the_record(rng):
    captions = Captions(fields={'caption': 0.6, 'synthetic': 0.2, 'swapped': 0.2})
    drawn = Counter(captions.choose(RECORD, rng)[0] for _ in range(5000))
    assert 1400 < drawn['a'] < 1600 and 1400 < drawn['b'] < 1600 and 900 < drawn['s'] < 1100
    captions = Captions(fields={'caption': 0.6, 'synthetic': 0.2, 'absent': 0.2})
    drawn = Counter(captions.choose(RECORD, rng)[0] for _ in range(4000))
    assert 900 < drawn['s'] < 1100 and drawn['s'] + drawn['a'] + drawn['b'] == 4000
    with pytest.raises(BadRecord, match='no text in absent') as error:
        Captions(fields={'absent': 1}).choose(RECORD, rng)
    assert error.value.kind == 'no_caption'


def test_several_captions_come_from_all_fields_before_one_is_repeated(rng):
    captions = Captions(fields={'caption': 0.5, 'synthetic': 0.5}, count=3)
    first = Counter()
    for _ in range(200):
        texts = captions.choose(RECORD, rng)
        assert sorted(texts) == ['a', 'b', 's']
        first[texts[0]] += 1
    assert 70 < first['s'] < 130


def test_hard_negatives_follow_the_captions_and_are_never_captions(rng):
    captions = Captions(negative_fields=('swapped',), negatives=2, count=2)
    assert captions.total == 4
    seen = Counter()
    for _ in range(300):
        texts = captions.choose(RECORD, rng)
        assert {*texts[:2]} < {'a', 'b', 's'} and len({*texts}) == 4
        seen.update(texts[2:])
    assert {*seen} == {'wrong', 'worse', 'worst'} and min(seen.values()) > 150
    many = Captions(negative_fields=('swapped',), negatives=5).choose(RECORD, rng)
    assert {*many[1:4]} == {*seen} and many[4:] == many[1:3]
    only = Captions(negative_fields=('swapped', 'synthetic'))
    assert {*(only.choose(RECORD, rng)[0] for _ in range(50))} == {'a', 'b'}
    with pytest.raises(BadRecord, match='no text in swapped') as error:
        captions.choose({'texts': ['a'], 'fields': {'caption': ['a']}}, rng)
    assert error.value.kind == 'no_negative'


def test_records_of_sources_with_one_field_or_none_can_be_chosen_from(rng):
    one, none = Listed([{'texts': ['a', 'b']}]), Listed([{'texts': ['c']}])
    one.text_fields = ('caption',)
    mixture = sources.Mixture([Fields('caption', 'synthetic', 'swapped'), one, none], [1, 1, 1])
    assert mixture[1] == {'texts': ['a', 'b'], 'fields': {'caption': ['a', 'b']}}
    assert Captions('longest', fields={'caption': 1}).choose(mixture[1], rng) == ['a']
    for i, texts in enumerate((['a', 'b', 's'], ['a', 'b'], ['c'])):
        captions = Captions('first', negative_fields=('swapped',), count=len(texts))
        assert captions.choose(mixture[i], rng) == texts


def test_a_filter_of_lengths_is_for_each_field(rng):
    wanted = Filter(min_caption=4).captions
    record = {'texts': [], 'fields': {'caption': ['a', 'b'], 'synthetic': ['long', 'longer']}}
    captions = Captions('first', fields={'caption': 0.9, 'synthetic': 0.1})
    assert captions.choose(record, rng, wanted) == ['long']
    with pytest.raises(BadRecord) as error:
        Captions(fields={'caption': 1}).choose(record, rng, wanted)
    assert error.value.kind == 'caption_length'
    record = {'fields': {'caption': ['long'], 'swapped': ['c', 'wrong']}}
    captions = Captions(negative_fields=('swapped',), negatives=1)
    for _ in range(10):
        assert captions.choose(record, rng, wanted) == ['long', 'wrong']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rule': 'shortest'}, "data.caption: there is no 'shortest'"),
        ({'fields': {'a': 0}}, 'data.caption_fields.a is 0; expected a probability above 0'),
        ({'fields': {'a': 'b'}}, "data.caption_fields.a is 'b'; expected a probability"),
        ({'fields': {'a': float('nan')}}, 'data.caption_fields.a is nan'),
        ({'negative_fields': 'a'}, r"negative_fields is 'a'; .* such as \('a',\)"),
        ({'fields': {'a': 1}, 'negative_fields': ('a',)}, 'a is in caption_fields and in negative'),
        ({'negatives': 1}, 'hard_negatives is 1, and data.negative_fields is empty'),
        ({'negatives': -1}, 'data.hard_negatives is -1; expected at least 0'),
        ({'count': 0}, 'data.captions_per_image is 0; expected at least 1'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Captions(**options)
    assert '\n' not in str(error.value)


class Fields(Listed):
    def __init__(self, *names: str):
        super().__init__([RECORD])
        self.text_fields = names

    def __str__(self) -> str:
        return f'fields of {len(self.text_fields)}'


def test_fields_that_do_not_exist_are_an_error_at_the_start():
    two, one = Fields('caption', 'synthetic'), Fields('caption')
    captions = Captions(fields={'synthetic': 1})
    captions.check(two)
    Captions().check(Listed([RECORD]))
    with pytest.raises(ValueError, match=r"caption_fields: .*no 'synthetic'.*There are: caption\."):
        captions.check(one)
    with pytest.raises(ValueError, match=r"negative_fields: .*no 'swaped'"):
        Captions(negative_fields=('swaped',)).check(two)
    with pytest.raises(ValueError, match=r'name fields, but .* has none'):
        captions.check(Listed([RECORD]))
    mixture = sources.Mixture([two, one], [1, 1])
    assert sources.text_fields(mixture) == ('caption', 'synthetic')
    Captions(fields={'synthetic': 1, 'caption': 1}).check(mixture)
    with pytest.raises(ValueError, match='caption_fields: fields of 1 has none of synthetic'):
        captions.check(mixture)
    # Without any in a batch, they need not be there.
    Captions(negative_fields=('synthetic',)).check(mixture)
    with pytest.raises(ValueError, match='negative_fields: fields of 1 has none of synthetic'):
        Captions(negative_fields=('synthetic',), negatives=1).check(mixture)
