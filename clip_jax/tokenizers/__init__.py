"""Tokenizers, one a file: a class `Tokenizer`, and `create`, which makes one for a training run.

`create(texts, *, context_length, **options) -> Tokenizer`: `texts` yields training captions, which
only tokenizers that learn their vocabulary read; `options` are those of `config.tokenizer`.

A `Tokenizer` has:

* `tokenizer(texts) -> int32 [N, context_length]` for one string or a sequence of strings, padded
  with `pad_id`. Long texts are truncated; the last token is still `eot_id`, where models pool.
* `vocab_size`, `context_length`, `eot_id`, `pad_id`. `eot_id` is None if texts have no end token.
* `decode(ids) -> str`: the text of one sequence of tokens, up to its end token.
* `card`: a JSON dict with the module's name as `name` and the content of any vocabulary file, from
  which `Tokenizer.from_card(card)` makes the same tokenizer.
* `save(folder)`: writes a vocabulary file for other programs.

It must pickle and be safe to call from several threads.

To export models with a tokenizer of another package, its class also needs `hf_config(folder) ->
dict`: it writes `tokenizer.json` for transformers and open_clip into the folder and returns the
content of `tokenizer_config.json`. Without it the weights are exported and transformers has no
tokenizer for them; a warning says so.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax import lookup
from clip_jax.runtime.messages import one_line


def from_card(card: Mapping[str, Any]) -> Any:
    """Makes the tokenizer that a card describes.

    Args:
        card: the tokenizer's `card`: its `name` (a file in this folder, or the import path of a
            module) and its fields.

    Returns:
        The tokenizer.

    Raises:
        ValueError: the name is unknown, the module cannot be imported, or a field is missing,
            unknown or wrong.
    """
    # pyrefly: ignore[bad-argument-type]  # None is unknown like any other name
    module = lookup.module('tokenizers', card.get('name'), 'Tokenizer')
    try:
        tokenizer = module.Tokenizer.from_card(card)
    except KeyError as error:
        raise ValueError(
            f'tokenizers/{card["name"]}: its card lacks {error}; it has {", ".join(card)}.'
        ) from error
    except (TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f'tokenizers/{card["name"]}: a field of its card has a wrong kind of value '
            f'({one_line(error)})'
        ) from error
    known = tokenizer.card
    for field in card:
        lookup.check(field, known, what=f'tokenizers/{card["name"]}: field of its card')
    return tokenizer


def check_fits(tokenizer: Any, text: Any) -> None:
    """Raises a ValueError if a tokenizer's tokens do not fit a text encoder."""
    for name in ('vocab_size', 'context_length'):
        ours, its = getattr(tokenizer, name), getattr(text, name)
        if ours > its:
            raise ValueError(
                f"the tokenizer's {name} is {ours:,} and the model's {its:,}: the tokenizer does "
                'not belong to this model'
            )
    if (eot_id := getattr(text, 'eot_id', None)) not in (None, tokenizer.eot_id):
        raise ValueError(
            f"the tokenizer's eot_id is {tokenizer.eot_id} and the model pools at eot_id "
            f'{eot_id}: the tokenizer does not belong to this model'
        )
