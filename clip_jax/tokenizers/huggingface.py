"""Vocabularies in the `tokenizer.json` that Hugging Face's libraries write for any model."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from clip_jax.tokenizers import _clean, _rows


class Tokenizer:
    """Turns texts into rows as a `tokenizer.json` says; too long a text is cut, its end token kept.

    `tokenizer_json` is the text of the file, with its own rules for text; `clean`, after CLIP's
    repair if `repair`, comes before them. `start_ids` is None where the file adds start and end
    tokens itself; given, rows are `start_ids`, the text's ids and `eot_id`, whatever the file adds.
    None stands for what the file has: the end token that it adds, its padding or, for want of that,
    the end token. What the file says of length does not count.
    """

    def __init__(
        self,
        tokenizer_json: str,
        context_length: int,
        pad_id: int | None = None,
        eot_id: int | None = None,
        *,
        start_ids: Sequence[int] | None = None,
        clean: str = 'none',
        repair: bool = False,
    ):
        self._file = tokenizer_json
        self._library, padding = _load(tokenizer_json)
        # Ids need not be dense: a file may leave some out.
        self.vocab_size = max(self._library.get_vocab().values(), default=-1) + 1
        added = _end(self._library)
        if eot_id is None and added is None:
            raise ValueError(
                'tokenizers/huggingface: the file adds no end token to a text, where models pool; '
                'give it a post_processor that does, or give start_ids and eot_id.'
            )
        eot_id = added if eot_id is None else eot_id
        if pad_id is None:
            pad_id = padding['pad_id'] if padding else eot_id
        self.pad_id = _rows.known(pad_id, self.vocab_size, what='tokenizers/huggingface: pad_id')
        self.eot_id = _rows.known(eot_id, self.vocab_size, what='tokenizers/huggingface: eot_id')
        self._start_ids = None if start_ids is None else [*start_ids]
        self.clean, self.repair = _clean.check(clean), repair
        self.context_length = context_length
        for token in start_ids or []:
            _rows.known(token, self.vocab_size, what='tokenizers/huggingface: start_ids')
        if start_ids is None and added != eot_id:
            raise ValueError(
                f'tokenizers/huggingface: the file adds the token {added} at the end of a text, '
                f'not eot_id, {eot_id}; give start_ids, [] for none, to have it added.'
            )
        special = len(start_ids or []) + 1
        if start_ids is None:
            special = self._library.num_special_tokens_to_add(is_pair=False)
        if context_length <= special:
            raise ValueError(
                f'tokenizers/huggingface: context_length is {context_length}; one token and the '
                f'special ones need {special + 1}.'
            )
        # The library leaves room for what the file adds, and cuts the text to the rest.
        self._library.enable_truncation(context_length)

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns int32 [N, context_length]; too long a text is cut, its end token kept."""
        # One text at a time: with lists the library starts threads, which a later fork disturbs.
        rows = [self._row(text) for text in _rows.as_list(texts)]
        return _rows.padded(rows, self.context_length, self.pad_id)

    def _row(self, text: str) -> list[int]:
        text = _clean.utf8(_clean.cleaned(text, self.clean, self.repair)).decode()
        if self._start_ids is None:
            return self._library.encode(text).ids
        ids = self._start_ids + self._library.encode(text, add_special_tokens=False).ids
        return [*ids[: self.context_length - 1], self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of one row, without special tokens, as far as the file can."""
        text = self._library.decode(_rows.content(ids, self))
        # Files of CLIP mark the ends of words and then name a decoder that does not know the mark.
        end_of_word = getattr(self._library.model, 'end_of_word_suffix', None)
        return (text.replace(end_of_word, ' ') if end_of_word else text).strip()

    @property
    def card(self) -> dict[str, Any]:
        return {
            'name': 'huggingface',
            'context_length': self.context_length,
            'pad_id': self.pad_id,
            'eot_id': self.eot_id,
            'start_ids': self._start_ids,
            'clean': self.clean,
            'repair': self.repair,
            'tokenizer_json': self._file,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(
            card['tokenizer_json'],
            card['context_length'],
            **_rows.given(card, 'pad_id', 'eot_id', 'start_ids', 'clean', 'repair'),
        )

    def save(self, folder: str) -> None:
        """Writes `tokenizer.json`, which every program with Hugging Face's tokenizers reads."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'tokenizer.json').write_text(self._file)

    def __reduce__(self):
        return type(self).from_card, (self.card,)


def create(texts: Iterable[str], *, context_length: int, path: str) -> Tokenizer:
    """Reads the `tokenizer.json` at `path`; its vocabulary is fixed, so captions are not read."""
    del texts
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f'tokenizers/huggingface: there is no file {path!r}.')
    return Tokenizer(file.read_text(), context_length)


def _load(tokenizer_json: str) -> tuple[tokenizers.Tokenizer, dict[str, Any] | None]:
    """Returns what a file describes, except that rows are not padded, and its padding.

    ValueError if the library cannot read it.
    """
    try:
        library = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(
            f'tokenizers/huggingface: these {len(tokenizer_json)} characters are no tokenizer.json '
            f'that tokenizers {tokenizers.__version__} can read: {error}'
        ) from error
    padding = library.padding
    library.no_padding()
    return library, padding


def _end(library: tokenizers.Tokenizer) -> int | None:
    """Returns the special token that a file adds at the end of a text, None if it adds none."""
    encoding = library.encode('a')
    return encoding.ids[-1] if encoding.special_tokens_mask[-1:] == [1] else None
