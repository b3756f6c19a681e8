"""Decodes stored captions, and sorts them by the field that they come from."""

from collections.abc import Iterable, Sequence
from typing import Any

from clip_jax.data.errors import BadRecord


def keys(given: str | Sequence[str], option: str) -> tuple[str, ...]:
    """Returns the names that an option has, one or several; ValueError if there is none."""
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{option} is {given!r}; expected a name such as 'caption', or several")
    return names


def field(key: str) -> str:
    """Returns how a config names a field: with _ for each dot, which its keys cannot have."""
    return key.replace('.', '_')


def of_example(found: Sequence[tuple[str, Sequence[str]]], *, several: bool) -> dict[str, Any]:
    """Returns an example's 'texts', all together, and 'fields', the same by their fields.

    Args:
        found: pairs of a field and its captions, in the order of the texts.
        several: whether the source has several fields; without, there are no 'fields'.
    """
    texts = [text for _, own in found for text in own]
    if not several:
        return {'texts': texts}
    fields: dict[str, list[str]] = {}
    for key, own in found:
        if own:
            fields.setdefault(field(key), []).extend(own)
    return {'texts': texts, 'fields': fields}


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


def encoded(text: str | None) -> bytes | None:
    """Returns a caption of JSON that was read with surrogates for bytes that are not UTF-8, as the
    file has it; ValueError if it is no text.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError
    try:
        return text.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:  # an unpaired surrogate, such as \ud800
        return text.encode('utf-8', 'surrogatepass')


def decode(data: bytes) -> str:
    """Decodes UTF-8, without a byte order mark; BadRecord('not_utf8')."""
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        near = data[max(0, error.start - 20) : error.start + 20]
        raise BadRecord(
            'not_utf8', f'the caption is not UTF-8 at byte {error.start}, near {near!r}'
        ) from None
