"""What goes into every tokenizer and what `decode` takes: lists of texts, rows of ids."""

from collections.abc import Sequence

import numpy as np


def as_list(texts: str | Sequence[str]) -> list[str]:
    """Returns the texts as a list, one string as a list of one; ValueError if any is no str."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'tokenizers: text {i} is {type(text).__name__} {text!r}, not str.')
    return texts


def content(ids: Sequence[int], tokenizer) -> list[int]:
    """Returns the ids of one row [L] before its end-of-text token, or before its padding."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f'tokenizers: decode takes one row of whole numbers, not {ids.dtype} {ids.shape}.'
        )
    ids = ids.tolist()
    wrong = [i for i in ids if not 0 <= i < tokenizer.vocab_size]
    if wrong:
        raise ValueError(
            f'tokenizers: there is no token {wrong[0]}; ids are below {tokenizer.vocab_size}.'
        )
    if tokenizer.eot_id in ids:
        return ids[: ids.index(tokenizer.eot_id)]
    while ids and ids[-1] == tokenizer.pad_id:
        ids.pop()
    return ids
