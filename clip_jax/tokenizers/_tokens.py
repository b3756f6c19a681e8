"""Inputs and outputs that tokenizers share: lists of texts, padded tokens, fields of cards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def as_list(texts: str | Iterable[str]) -> list[str]:
    """Returns texts as a list, one string as a list of one; ValueError if any is no str."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'tokenizers: text {i} is {type(text).__name__} {text!r}, not str.')
    return texts


def padded(sequences: Sequence[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
    """Pads sequences of ids, none longer than `length`, to int32 [N, length]."""
    tokens = np.full((len(sequences), length), pad_id, np.int32)
    for padded_ids, ids in zip(tokens, sequences, strict=True):
        padded_ids[: len(ids)] = ids
    return tokens


def given(card: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns the named fields that the card has; the others keep their defaults."""
    return {name: card[name] for name in names if name in card}


def known(token: int, vocab_size: int, *, what: str) -> int:
    """Returns a token id; ValueError if it is outside the vocabulary."""
    if not 0 <= token < vocab_size:
        raise ValueError(f'{what}: there is no token {token}; ids are below {vocab_size}.')
    return token


def content(ids: Sequence[int], tokenizer) -> list[int]:
    """Returns the ids of one sequence [L] up to its end-of-text token, or up to its padding."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f'tokenizers: decode takes one sequence of integers, not {array.dtype} {array.shape}.'
        )
    tokens = array.tolist()
    for i in tokens:
        known(i, tokenizer.vocab_size, what='tokenizers: decode')
    if tokenizer.eot_id in tokens:
        return tokens[: tokens.index(tokenizer.eot_id)]
    while tokens and tokens[-1] == tokenizer.pad_id:
        tokens.pop()
    return tokens
