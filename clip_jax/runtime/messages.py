"""Parts of messages that many files need: errors in one line, long lists cut short, escapes."""

import unicodedata
from collections.abc import Collection, Sequence

SHOWN = 100  # items of an error, or characters of a value, that are shown


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line, or the name of its type if it has no message."""
    return ' '.join(str(error).split()) or type(error).__name__


def brief(error: BaseException) -> str:
    """Returns the start of an error's message in one line, for errors of libraries."""
    return one_line(error)[:200]


class Failures(ValueError):
    """An error with several items: one line in the library, a line per item at the command line.

    Attributes:
        heading: what is wrong, and what to do.
        items: what was found, such as the files that are corrupt.
    """

    def __init__(self, heading: str, items: Sequence[str]):
        super().__init__(f'{heading}: {first_few(items, separator="; ")}')
        self.heading, self.items = heading, list(items)

    def __reduce__(self) -> tuple:
        return Failures, (self.heading, self.items)

    def lines(self) -> list[str]:
        """Returns the heading and the items, each in one line."""
        more = len(self.items) - SHOWN
        rest = [f'and {more:,} more'] if more > 0 else []
        shown = [' '.join(item.split()) for item in [*self.items[:SHOWN], *rest]]
        return [f'{" ".join(self.heading.split())}:', *(f'  {item}' for item in shown)]


def lines_of(error: BaseException) -> list[str]:
    """Returns an error as lines: one, or for several `Failures` a heading and a line for each."""
    if isinstance(error, Failures) and len(error.items) > 1:
        return error.lines()
    return [one_line(error)]


def shown(value: object) -> str:
    """Returns what a message shows of a value from a file, which may be long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}…'


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device has too little memory, at run time or when compiling."""
    return any(words in str(error) for words in ('RESOURCE_EXHAUSTED', 'ut of memory'))
