"""One file = one tokenizer: `Tokenizer`, and `create`, which makes one for a training run.

`tokenizer(texts) -> int32 [N, context_length]` for one string or a sequence of them, padded with
`pad_id`; a text that is too long is cut and its last token is still `eot_id`, where models pool.
`vocab_size`, `context_length`, `eot_id`, `pad_id`; `decode(ids) -> str` reads a row up to its end.
`card` is a JSON dict, with its `name` and the content of any model file, that alone makes the same
tokenizer again: `Tokenizer.from_card(card)`. `save(folder)` writes a file for other programs.
A tokenizer pickles and may be called from several threads.
`create(texts, *, context_length, **options) -> Tokenizer`; `texts` yields training captions, which
only tokenizers that learn their vocabulary read.
A tokenizer of another package may have `hf_config(folder) -> dict`: it writes `tokenizer.json` for
transformers and open_clip when a model is exported, and returns the content of
`tokenizer_config.json`.
"""

from typing import Any

from clip_jax import lookup


def from_card(card: dict[str, Any]) -> Any:
    """Makes the tokenizer that a card describes; ValueError if its name or a field is wrong."""
    module = lookup.module('tokenizers', card.get('name'), 'Tokenizer')
    try:
        tokenizer = module.Tokenizer.from_card(card)
    except KeyError as error:
        raise ValueError(
            f'tokenizers/{card["name"]}: its card lacks {error}; it has {", ".join(card)}.'
        ) from error
    known = tokenizer.card
    for field in card:
        lookup.check(field, known, what=f'tokenizers/{card["name"]}: field of its card')
    return tokenizer
