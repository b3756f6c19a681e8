"""Parts of messages: one line of an error, the first few of many items."""

from clip_jax.runtime.messages import first_few, one_line


def test_an_error_is_one_line():
    assert one_line(ValueError('a\n  b\tc ')) == 'a b c'
    assert one_line(EOFError()) == 'EOFError'


def test_of_many_items_the_first_are_listed_and_the_others_counted():
    assert first_few([]) == ''
    assert first_few(['a', 'b'], 2) == 'a, b'
    assert first_few(range(1234), 2, separator='; ') == '0; 1 and 1,232 more'
