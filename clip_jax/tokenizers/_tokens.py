"""What tokenizers take and give back: lists of texts, rows of ids, cards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def as_list(texts: str | Sequence[str]) -> list[str]:
    """Returns the texts as a list, one string as a list of one; ValueError if any is no str."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'tokenizers: text {i} is {type(text).__name__} {text!r}, not str.')
    return texts


def padded(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
    """Returns the ids of several texts, none longer than `length`, as int32 [N, length]."""
    table = np.full((len(rows), length), pad_id, np.int32)
    for line, ids in zip(table, rows, strict=True):
        line[: len(ids)] = ids
    return table


def given(card: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns those of the fields that the card has; the others keep their defaults."""
    return {name: card[name] for name in names if name in card}


def known(token: int, vocab_size: int, *, what: str) -> int:
    """Returns the id of a token; ValueError if the vocabulary has no such id."""
    if not 0 <= token < vocab_size:
        raise ValueError(f'{what}: there is no token {token}; ids are below {vocab_size}.')
    return token


def content(ids: Sequence[int], tokenizer) -> list[int]:
    """Returns the ids of one row [L] before its end-of-text token, or before its padding."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f'tokenizers: decode takes one row of whole numbers, not {ids.dtype} {ids.shape}.'
        )
    ids = ids.tolist()
    for i in ids:
        known(i, tokenizer.vocab_size, what='tokenizers: decode')
    if tokenizer.eot_id in ids:
        return ids[: ids.index(tokenizer.eot_id)]
    while ids and ids[-1] == tokenizer.pad_id:
        ids.pop()
    return ids
