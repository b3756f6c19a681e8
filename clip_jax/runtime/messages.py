"""Parts of messages that many files need: errors in one line, long lists cut short."""

from collections.abc import Collection


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line, or the name of its type if it has no message."""
    return ' '.join(str(error).split()) or type(error).__name__


def first_few(items: Collection[object], count: int = 5, *, separator: str = ', ') -> str:
    """Joins the first `count` items and says how many more there are: 'a, b and 7 more'."""
    shown = separator.join(str(item) for item, _ in zip(items, range(count), strict=False))
    more = len(items) - count
    return f'{shown} and {more:,} more' if more > 0 else shown
