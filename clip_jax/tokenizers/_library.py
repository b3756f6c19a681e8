"""Hugging Face's `tokenizers`: what it raises becomes one line."""

import tokenizers

from clip_jax.runtime.messages import brief, one_line


def library_of(tokenizer_json: str, what: str) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer of a `tokenizer.json`.

    Args:
        tokenizer_json: the content of the file.
        what: where it comes from; error messages start with it.

    Raises:
        ValueError: the library cannot read it.
    """
    try:
        library = tokenizers.Tokenizer.from_str(tokenizer_json)
        library.encode('a')  # special tokens that are not there are found here
        return library
    except BaseException as error:
        if not _raised_by_library(error):
            raise
        raise ValueError(
            f'{what}: these {len(tokenizer_json)} characters are no tokenizer.json that '
            f'tokenizers {tokenizers.__version__} can read: {brief(error)}'
        ) from error


def _raised_by_library(error: BaseException) -> bool:
    # What its Rust code raises, PanicException, is no Exception; an interrupt is none either.
    return isinstance(error, Exception) or type(error).__name__ == 'PanicException'


def ids_of(library: tokenizers.Tokenizer, text: str, **options: bool) -> list[int]:
    """Returns the ids of a text; ValueError if the library cannot encode it."""
    try:
        return library.encode(text, **options).ids
    except BaseException as error:  # a pattern of the file may need more time than it has
        if not _raised_by_library(error):
            raise
        raise ValueError(
            f'tokenizers/huggingface: the tokenizer.json cannot encode {text[:40]!r}: '
            f'{one_line(error)}'
        ) from error
