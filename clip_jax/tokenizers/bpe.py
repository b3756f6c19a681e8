"""CLIP's byte-pair encoding (Radford et al. 2021), with its published 49,408 tokens."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ftfy
import instant_clip_tokenizer
import numpy as np
from etils import epath

from clip_jax.tokenizers import _rows

_SOT = 49406
# The vocabulary calls its special tokens <|startoftext|> and <|endoftext|>; the library spells them
# <start_of_text> and <end_of_text>. Either is special only where a match can begin, hence runs of
# other signs are matched too: in '!<|endoftext|>' the run '!<|' wins and nothing is special.
_SPECIAL_OR_SIGNS = re.compile(r'<\|(start|end)oftext\|>|(?:[^\s\w]|_)+')
_LIBRARY_SPECIAL = re.compile(r'<(?=(?:start|end)_of_text>)')


def clean(text: str) -> str:
    """Repairs encoding, undoes HTML escapes, collapses whitespace and lower-cases, as CLIP does."""
    # ftfy takes 90% of the time and leaves text of printable ASCII without '&' as it is.
    if '&' in text or not (text.isascii() and text.isprintable()):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = ' '.join(text.split()).lower()
    return _respell(text) if 'oftext|>' in text or '_of_text>' in text else text


def _respell(text: str) -> str:
    """Returns text in which the library finds the special tokens that the published code finds."""
    text = _LIBRARY_SPECIAL.sub('< ', text)
    return _SPECIAL_OR_SIGNS.sub(lambda m: f' <{m[1]}_of_text> ' if m[1] else m[0], text)


class Tokenizer:
    """Turns texts into rows `[SOT] ids [EOT] 0 ...`, equal to OpenAI's with `truncate=True`."""

    vocab_size = 49408
    eot_id = 49407
    pad_id = 0

    def __init__(self, context_length: int = 77):
        if context_length < 3:
            raise ValueError(
                f'tokenizers/bpe: context_length is {context_length}; start, token and end need 3.'
            )
        self.context_length = context_length
        self._library = instant_clip_tokenizer.Tokenizer()

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns int32 [N, context_length]; too long a text is cut, its end token kept."""
        texts = [clean(text) for text in _rows.as_list(texts)]
        rows = self._library.tokenize_batch(texts, context_length=self.context_length)
        return rows.astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of one row, cleaned as it was for encoding; signs may stand apart."""
        return self._library.decode([i for i in _rows.content(ids, self) if i != _SOT]).strip()

    @property
    def card(self) -> dict[str, Any]:
        return {'name': 'bpe', 'context_length': self.context_length}

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(card['context_length'])

    def save(self, folder: str) -> None:
        """Writes `tokenizer_card.json`: the vocabulary is CLIP's own, every CLIP program has it."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'tokenizer_card.json').write_text(json.dumps(self.card, indent=2) + '\n')

    def __reduce__(self):
        return type(self), (self.context_length,)


def create(texts: Iterable[str], *, context_length: int) -> Tokenizer:
    """Makes CLIP's tokenizer; its vocabulary is fixed, so the captions are not read."""
    del texts
    return Tokenizer(context_length)
