"""Training examples: which caption is taken."""

import numpy as np
import pytest
from support.listed import Listed

from clip_jax.data import examples
from clip_jax.data.augment import Augment
from clip_jax.data.errors import BadRecord


def test_every_text_is_chosen_equally_often():
    rng = np.random.default_rng(0)
    chosen = [examples.choose_caption(['a', 'b', 'c'], rng) for _ in range(3000)]
    assert all(900 < chosen.count(text) < 1100 for text in 'abc')


def test_texts_are_chosen_by_rule():
    rng = np.random.default_rng(0)
    texts = ['one', 'three', 'seven', 'two']
    assert {examples.choose_caption(texts, rng, 'first') for _ in range(20)} == {'one'}
    assert {examples.choose_caption(texts, rng, 'longest') for _ in range(20)} == {'three'}
    for rule in examples.CAPTION_RULES:
        with pytest.raises(BadRecord, match='no text') as error:
            examples.choose_caption([], rng, rule)
        assert error.value.kind == 'no_caption'


def test_images_above_the_limit_are_replaced():
    large, small = np.full((20, 20, 3), 9, np.uint8), np.full((19, 21, 3), 7, np.uint8)
    source = Listed([{'image': image, 'texts': ['a']} for image in (large, small)])
    image, bad = np.zeros((8, 8, 3), np.uint8), np.full(examples.TRIES, -1)
    make = {'seed': 0, 'augment': Augment(), 'filter': examples.Filter(), 'caption': 'first'}
    for limit, shade in (400, 9), (399, 7):
        maker = examples.ExampleMaker(source, **make, parts=((0, 2),), max_pixels=limit)
        maker(0, 0, image, bad)
        assert (image == shade).all()
    assert {(0, 'too_large')} == {*examples.bad_records(bad)}
