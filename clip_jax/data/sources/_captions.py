"""Decodes stored captions."""

from collections.abc import Iterable

from clip_jax.data.errors import BadRecord


def texts(stored: Iterable[bytes | None]) -> list[str]:
    """Decodes and strips captions, without a byte order mark; empty ones are left out.

    Raises BadRecord('not_utf8').
    """
    decoded = [_decode(data).strip() for data in stored if data]
    return [text for text in decoded if text]


def lines(data: bytes) -> list[str]:
    """Decodes a file with one caption per line, without empty lines; BadRecord('not_utf8')."""
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
