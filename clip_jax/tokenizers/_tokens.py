"""Inputs and outputs that tokenizers share: lists of texts, padded tokens, fields of cards."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import lookup
from clip_jax.runtime.messages import shown

_LONGEST = 1 << 20  # tokens of a text; a card of somebody else may ask for any number


def as_list(texts: str | Iterable[str]) -> list[str]:
    """Returns texts as a list, one string as a list of one; ValueError if any is no str."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'tokenizers: text {i} is {type(text).__name__} {text!r}, not str.')
    return texts


def padded(
    sequences: Sequence[Sequence[int]], length: int, pad_id: int, side: str = 'right'
) -> np.ndarray:
    """Pads sequences of ids, none longer than `length`, to int32 [N, length], on one side."""
    tokens = np.full((len(sequences), length), pad_id, np.int32)
    for padded_ids, ids in zip(tokens, sequences, strict=True):
        first = length - len(ids) if side == 'left' else 0
        padded_ids[first : first + len(ids)] = ids
    return tokens


def cut(ids: Sequence[int], length: int, side: str) -> list[int]:
    """Returns at most `length` ids, after dropping the others on one side."""
    return [*(ids[-length:] if side == 'left' and length else ids[:length])]


def side(value: str, *, what: str) -> str:
    """Returns the side of padding or truncation; ValueError if it is neither left nor right."""
    return lookup.check(value, ('left', 'right'), what=what)


def length(value: Any, least: int, why: str, *, what: str) -> int:
    """Returns a context length; ValueError if it is no integer of at least `least`."""
    if type(value) is not int or not least <= value <= _LONGEST:
        raise ValueError(
            f'{what}: context_length is {shown(value)}; it must be an integer of at least {least} '
            f'({why}) and at most {_LONGEST:,}.'
        )
    return value


def given(card: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns the named fields that the card has; the others keep their defaults."""
    return {name: card[name] for name in names if name in card}


def known(token: int, vocab_size: int, *, what: str) -> int:
    """Returns a token id; ValueError if it is outside the vocabulary."""
    if type(token) is not int or not 0 <= token < vocab_size:
        raise ValueError(f'{what}: there is no token {shown(token)}; ids are below {vocab_size}.')
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
    if getattr(tokenizer, 'pad_side', 'right') == 'left':
        tokens = [*itertools.dropwhile(lambda token: token == tokenizer.pad_id, tokens)]
    if tokenizer.eot_id in tokens:
        return tokens[: tokens.index(tokenizer.eot_id)]
    while tokens and tokens[-1] == tokenizer.pad_id:
        tokens.pop()
    return tokens
