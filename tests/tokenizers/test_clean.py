"""What happens to a text before it is cut into tokens."""

import json
import pathlib
import random
import string

import ftfy
import pytest

from clip_jax.tokenizers import _clean

GOLDEN = pathlib.Path(__file__).parents[2] / '../shared/golden/tokenizer'

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason='reference outputs are not on this machine'
)


@needs_golden
@pytest.mark.parametrize('rule', ['lower', 'whitespace', 'canonicalize'])
def test_after_a_repair_equals_the_published_rule_of_that_name(rule):
    texts = json.loads((GOLDEN / 'texts.json').read_text())
    expected = json.loads((GOLDEN / f'clean_{rule}.json').read_text())
    assert [_clean.cleaned(text, rule, repair=True) for text in texts] == expected


@pytest.mark.parametrize(
    ('rule', 'expected'),
    [
        ('none', " It's  A_Big\tÉCLAIR &amp; more! "),
        ('whitespace', "It's A_Big ÉCLAIR &amp; more!"),
        ('lower', " it's  a_big\téclair &amp; more! "),
        ('lower_ascii', " it's  a_big\tÉclair &amp; more! "),
        ('canonicalize', 'its a big éclair amp more'),
        ('remove_punctuation', 'its abig éclair amp more'),
        ('remove_punctuation_keep_case', 'Its ABig ÉCLAIR amp more'),
    ],
)
def test_each_rule_does_what_it_says(rule, expected):
    assert _clean.cleaned(" It's  A_Big\tÉCLAIR &amp; more! ", rule, repair=False) == expected


def test_every_rule_is_tested():
    assert len(_clean.RULES) == 7


@pytest.mark.parametrize('rule', _clean.RULES)
def test_a_cleaned_text_stays_as_it_is(rule):
    rng = random.Random(0)
    for _ in range(300):
        text = ''.join(rng.choices(string.printable + 'Éß猫“\xa0', k=20))
        once = _clean.cleaned(text, rule, repair=False)
        assert _clean.cleaned(once, rule, repair=False) == once


def test_only_a_repair_undoes_escapes_and_broken_encoding():
    assert _clean.cleaned('caf&amp;eacute; schÃ¶n', 'none', repair=False) == (
        'caf&amp;eacute; schÃ¶n'
    )
    assert _clean.cleaned('caf&amp;eacute; schÃ¶n', 'none', repair=True) == 'café schön'


def test_printable_ascii_needs_no_repair():
    letters = (string.printable[:95]).replace('&', '')
    rng = random.Random(0)
    for _ in range(2000):
        text = ''.join(rng.choices(letters, k=20))
        assert ftfy.fix_text(text) == text


def test_half_a_surrogate_pair_becomes_a_question_mark():
    assert _clean.utf8('é \ud83d!') == 'é ?!'.encode()


def test_an_unknown_rule_says_what_there_is():
    with pytest.raises(ValueError, match=r"'canonical'.*Did you mean 'canonicalize'.*lower_ascii"):
        _clean.check('canonical')
