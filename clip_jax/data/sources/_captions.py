"""Stored captions become text, or are reported."""

from collections.abc import Iterable

from clip_jax.data.errors import BadRecord


def texts(stored: Iterable[bytes | None]) -> list[str]:
    """Decodes captions without the space around them, leaves out empty ones; BadRecord('not_utf8').

    A byte order mark is no part of a caption.
    """
    decoded = [_decode(data).strip() for data in stored if data]
    return [text for text in decoded if text]


def lines(data: bytes) -> list[str]:
    """Decodes a file of one caption a line, without empty lines; BadRecord('not_utf8')."""
    stripped = [line.strip() for line in _decode(data).splitlines()]
    return [line for line in stripped if line]


def _decode(data: bytes) -> str:
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        near = data[max(0, error.start - 20) : error.start + 20]
        raise BadRecord(
            'not_utf8', f'the caption is not UTF-8 at byte {error.start}, near {near!r}'
        ) from None
