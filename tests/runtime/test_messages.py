"""Parts of messages: one line of an error, the first few of many items."""

import os

import pytest

from clip_jax.runtime.messages import first_few, one_line, printable


def test_an_error_is_one_line():
    assert one_line(ValueError('a\n  b\tc ')) == 'a b c'
    assert one_line(EOFError()) == 'EOFError'


def test_of_many_items_the_first_are_listed_and_the_others_counted():
    assert first_few([]) == ''
    assert first_few(['a', 'b'], 2) == 'a, b'
    assert first_few(range(1234), 2, separator='; ') == '0; 1 and 1,232 more'


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('größe 猫\u00a0x', 'größe 猫\u00a0x'),
        ('\x1b[31mred\x07', r'\x1b[31mred\x07'),
        ('a\nb\r', r'a\nb\r'),
        ('\u202egnp.exe\u200b', r'\u202egnp.exe\u200b'),
        (os.fsdecode(b'caf\xe9'), r'caf\xe9'),
        ('\x9b1m\x7f', r'\x9b1m\x7f'),
        ('\ud83d', r'\ud83d'),
    ],
)
def test_what_would_control_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_some_characters_may_stay():
    assert printable('a\n\tb\x1b', keep='\n\t') == 'a\n\tb\\x1b'
