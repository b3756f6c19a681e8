"""Parts of messages that many files need: errors in one line, long lists cut short, escapes."""

import unicodedata
from collections.abc import Collection


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line, or the name of its type if it has no message."""
    return ' '.join(str(error).split()) or type(error).__name__


def first_few(items: Collection[object], count: int = 5, *, separator: str = ', ') -> str:
    """Joins the first `count` items and says how many more there are: 'a, b and 7 more'."""
    shown = separator.join(str(item) for item, _ in zip(items, range(count), strict=False))
    more = len(items) - count
    return f'{shown} and {more:,} more' if more > 0 else shown


def printable(text: object, *, keep: str = '') -> str:
    """Returns a text for a terminal: names in it can neither control the terminal nor stop it.

    Control characters, bidirectional marks and bytes that are not UTF-8 are escaped, as `\\x1b`.

    Args:
        text: what is printed.
        keep: characters that stay as they are, such as line breaks.
    """
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(
        c if c.isprintable() or c in keep or unicodedata.category(c) == 'Zs' else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    if '\udc80' <= character <= '\udcff':  # a byte of a file name that is not UTF-8
        return f'\\x{ord(character) - 0xDC00:02x}'
    return character.encode('unicode_escape').decode()
