"""Decodes stored captions."""

from collections.abc import Iterable

from clip_jax.data.errors import BadRecord


def texts(stored: Iterable[bytes | None]) -> list[str]:
    """Decodes and strips captions, without a byte order mark; empty ones are left out.

    Raises BadRecord('not_utf8').
    """
    decoded = [decode(data).strip() for data in stored if data]
    return [text for text in decoded if text]


def of_file(data: bytes, *, lines: bool) -> list[str]:
    r"""Returns the captions of a text file, stripped; empty ones are left out.

    Args:
        data: the file, UTF-8 with or without a byte order mark.
        lines: whether each line is a caption; otherwise the whole file is one. Lines end with \n:
            captions contain \f, \x85, \u2028 and other characters at which str.splitlines cuts.

    Raises:
        BadRecord: 'not_utf8'.
    """
    text = decode(data)
    stripped = [part.strip() for part in (text.split('\n') if lines else [text])]
    return [part for part in stripped if part]


def decode(data: bytes) -> str:
    """Decodes UTF-8, without a byte order mark; BadRecord('not_utf8')."""
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        near = data[max(0, error.start - 20) : error.start + 20]
        raise BadRecord(
            'not_utf8', f'the caption is not UTF-8 at byte {error.start}, near {near!r}'
        ) from None
