"""Bad records: each has a kind, is counted and replaced, and never silently dropped."""

from typing import NamedTuple

# What can be wrong with a record when it is read. Batches carry the indices of these kinds.
BAD_RECORD_KINDS = (
    'no_image',  # the file that a table names is missing, or a tar member is empty
    'empty',  # zero bytes
    'not_an_image',  # no known image format
    'no_decoder',  # a format, such as HEIC, whose decoder is not installed
    'truncated',  # the image ends early
    'damaged',  # a decoder rejects it
    'too_small',  # a side of fewer than image.opening.MIN_SIDE pixels
    'too_large',  # more pixels than max_pixels, by its header; not decoded
    'no_caption',
    'not_utf8',  # the caption is not UTF-8 text
    'no_negative',  # no hard-negative caption, where config.data asks for some
    'no_embedding',  # a stored teacher has none: the record was bad when the data was embedded
    'small_side',  # this and the following: excluded by config.data.filter, not bad
    'long_aspect',
    'caption_length',
)
FILTERED = ('small_side', 'long_aspect', 'caption_length')

# What a source passes over without losing a record: a README among images, hidden files, a folder
# whose images it already has.
HARMLESS = ('other_file', 'hidden', 'repeated_folder')


class BadRecord(ValueError):
    """A record that cannot be used; `kind` is one of BAD_RECORD_KINDS."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return BadRecord, (self.kind, str(self))


class DataNotFound(ValueError):
    """The data that a SPEC names does not exist."""


class Skipped(NamedTuple):
    """What a source found when it was opened, of one kind, and could not make records of."""

    count: int
    examples: list[str]  # the places of the first few
