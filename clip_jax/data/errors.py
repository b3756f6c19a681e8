"""Records that cannot be used: one kind each, counted and replaced, never silently dropped."""

from typing import NamedTuple

# What can be wrong with a record, found when it is read. Their numbers travel in batches.
BAD_RECORD_KINDS = (
    'no_image',  # the table's file is missing, or a member has no data
    'empty',  # zero bytes
    'not_an_image',  # bytes of no known image format
    'truncated',  # the image ends before its end
    'damaged',  # a decoder refuses it
    'too_small',  # a side of fewer than image.headers.MIN_SIDE pixels
    'too_large',  # more than image.headers.MAX_PIXELS pixels, said by the header; not decoded
    'no_caption',
    'not_utf8',  # the caption is no text
    'small_side',  # this and what follows: left out by a filter of the config, not bad
    'long_aspect',
    'caption_length',
)
FILTERED = ('small_side', 'long_aspect', 'caption_length')


class BadRecord(ValueError):
    """A record that cannot be used, of one of KINDS; the message says what was found."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return BadRecord, (self.kind, str(self))


class DataNotFound(ValueError):
    """Data that a SPEC names and that is not there; nothing is said to be wrong with it."""


class Skipped(NamedTuple):
    """What a source found when it was opened and could not make records of."""

    count: int
    examples: list[str]  # where the first few lie
