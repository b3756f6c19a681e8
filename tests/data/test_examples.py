"""Training examples: which caption is taken."""

import numpy as np
import pytest

from clip_jax.data import examples
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
