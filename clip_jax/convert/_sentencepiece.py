"""SentencePiece model files, which are protocol buffers: what the library does not tell of them."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import sentencepiece

# Numbers of fields in sentencepiece_model.proto, and of the kinds of pieces.
_PIECES, _NORMALIZER, _CHARSMAP = 1, 3, 2
_TEXT, _KIND = 1, 3
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SIZES = {1: 8, 5: 4}  # bytes of the types of fields without a length


class Model(NamedTuple):
    """The content of a model file.

    Attributes:
        pieces: the vocabulary; the id of a piece is its index.
        added: ids of the pieces that are control symbols or defined by the user.
        charsmap: the compiled rules of normalization; b'': none.
    """

    pieces: list[str]
    added: list[int]
    charsmap: bytes


def library(path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
    """Returns the library's tokenizer of a model file; ValueError if it is none."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise ValueError(f'{path}: not a SentencePiece model; download it again') from error


def read(path: pathlib.Path) -> Model:
    """Reads a model file; ValueError if it is none."""
    library(path)
    pieces, added, charsmap = [], [], b''
    for number, _, content in fields(path.read_bytes()):
        if number == _PIECES:
            parts = {key: value for key, _, value in fields(content)}
            if _kind(parts.get(_KIND, bytes([_NORMAL]))) in (_CONTROL, _USER_DEFINED):
                added.append(len(pieces))
            pieces.append(parts[_TEXT].decode('utf-8'))
        elif number == _NORMALIZER:
            charsmap = {key: value for key, _, value in fields(content)}.get(_CHARSMAP, b'')
    return Model(pieces, added, charsmap)


def _kind(number: bytes) -> int:
    return _number(number, 0)[0]


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yields the fields of a protocol buffer: the number, all bytes, and those of the value.

    Raises:
        ValueError: a field is of no known type.
    """
    start = 0
    while start < len(message):
        key, at = _number(message, start)
        kind = key & 7
        if kind == 2:
            size, at = _number(message, at)
        elif kind == 0:
            size = _number(message, at)[1] - at
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError(f'not a SentencePiece model: a field of type {kind}')
        yield key >> 3, message[start : at + size], message[at : at + size]
        start = at + size


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A number in base 128, the lowest digit first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
