"""Any tokenizer in a `tokenizer.json` file, the format of Hugging Face's `tokenizers`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from clip_jax.tokenizers import _clean, _tokens
from clip_jax.tokenizers._library import ids_of, library_of


class Tokenizer:
    """The tokenizer of a `tokenizer.json`; truncation keeps the end token, if there is one.

    The file's own length, truncation and padding settings are ignored.

    Args:
        tokenizer_json: the content of the file.
        context_length: tokens per text.
        pad_id: by default the file's padding token, or else the end token.
        eot_id: the end token; by default the one that the file adds, or none if there are
            `start_ids`.
        start_ids: None if the file adds the start and end tokens itself. Otherwise sequences are
            `start_ids`, the ids of the text and `eot_id` if there is one, whatever the file adds.
        clean: the cleaning rule, applied before the file's own normalizer.
        repair: whether CLIP's repair of encoding and HTML comes before `clean`.
        pad_side: where padding is, 'right' or 'left' of the sequence.
        truncate_side: which end of a long text is dropped, 'right' or 'left'.

    Raises:
        ValueError: the file cannot be read, or an argument does not fit it.
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
        pad_side: str = 'right',
        truncate_side: str = 'right',
    ):
        self._file = tokenizer_json
        self._library, padding = _load(tokenizer_json)
        # Ids need not be contiguous.
        self.vocab_size = max(self._library.get_vocab().values(), default=-1) + 1
        added = _end(self._library, self.vocab_size)
        if eot_id is None and start_ids is None:
            if added is None:
                raise ValueError(
                    'tokenizers/huggingface: the file adds no end token, at which models pool; add '
                    'a post_processor to it that does, or give start_ids and eot_id.'
                )
            eot_id = added
        if pad_id is None:
            pad_id = padding['pad_id'] if padding else eot_id
        if pad_id is None:
            raise ValueError(
                'tokenizers/huggingface: the file says no padding token, and there is no end token '
                'to pad with; give pad_id.'
            )
        self.pad_id = _tokens.known(pad_id, self.vocab_size, what='tokenizers/huggingface: pad_id')
        self.eot_id = eot_id
        if eot_id is not None:
            _tokens.known(eot_id, self.vocab_size, what='tokenizers/huggingface: eot_id')
        self._start_ids = None if start_ids is None else [*start_ids]
        self.clean, self.repair = _clean.check(clean), repair
        what = 'tokenizers/huggingface'
        self.pad_side = _tokens.side(pad_side, what=f'{what}: pad_side')
        self.truncate_side = _tokens.side(truncate_side, what=f'{what}: truncate_side')
        for token in start_ids or []:
            _tokens.known(token, self.vocab_size, what='tokenizers/huggingface: start_ids')
        if start_ids is None and added != eot_id:
            raise ValueError(
                f'tokenizers/huggingface: the file adds the token {added} at the end of a text, '
                f'not eot_id, {eot_id}; give start_ids ([] for none) to have eot_id added.'
            )
        self._end_ids = [] if eot_id is None else [eot_id]
        special = len([*(start_ids or []), *self._end_ids])
        if start_ids is None:
            special = self._library.num_special_tokens_to_add(is_pair=False)
        why = 'one token and the special tokens'
        self.context_length = _tokens.length(
            context_length, special + 1, why, what='tokenizers/huggingface'
        )
        # The library truncates the text so that the tokens that the file adds fit.
        if start_ids is None:
            self._library.enable_truncation(context_length, direction=truncate_side)
        else:
            self._library.no_truncation()

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Tokenizes texts: int32 [N, context_length]; truncation keeps the end token."""
        # One text at a time: for lists the library starts threads, which break a later fork.
        sequences = [self._encode(text) for text in _tokens.as_list(texts)]
        return _tokens.padded(sequences, self.context_length, self.pad_id, self.pad_side)

    def _encode(self, text: str) -> list[int]:
        text = _clean.utf8(_clean.cleaned(text, self.clean, self.repair)).decode()
        if self._start_ids is None:
            return ids_of(self._library, text)
        ids = ids_of(self._library, text, add_special_tokens=False)
        room = self.context_length - len(self._start_ids) - len(self._end_ids)
        return [*self._start_ids, *_tokens.cut(ids, room, self.truncate_side), *self._end_ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of one sequence, without special tokens."""
        text = self._library.decode(_tokens.content(ids, self))
        # CLIP's files mark ends of words and name a decoder that ignores the mark.
        end_of_word = getattr(self._library.model, 'end_of_word_suffix', None)
        return (text.replace(end_of_word, ' ') if end_of_word else text).strip()

    @property
    def card(self) -> dict[str, Any]:
        """The JSON dict that `from_card` makes the same tokenizer from."""
        return {
            'name': 'huggingface',
            'context_length': self.context_length,
            'pad_id': self.pad_id,
            'eot_id': self.eot_id,
            'start_ids': self._start_ids,
            'clean': self.clean,
            'repair': self.repair,
            'pad_side': self.pad_side,
            'truncate_side': self.truncate_side,
            'tokenizer_json': self._file,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(
            card['tokenizer_json'],
            card['context_length'],
            **_tokens.given(card, 'pad_id', 'eot_id', 'start_ids', 'clean', 'repair'),
            **_tokens.given(card, 'pad_side', 'truncate_side'),
        )

    def save(self, folder: str) -> None:
        """Writes `tokenizer.json`."""
        place = epath.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / 'tokenizer.json').write_text(self._file)

    def __reduce__(self):
        return type(self).from_card, (self.card,)


def create(texts: Iterable[str], *, context_length: int, path: str) -> Tokenizer:
    """Reads the `tokenizer.json` at `path`; its vocabulary is fixed, so `texts` is not read."""
    del texts
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f'tokenizers/huggingface: there is no file {path!r}.')
    return Tokenizer(file.read_text(), context_length)


def _load(tokenizer_json: str) -> tuple[tokenizers.Tokenizer, dict[str, Any] | None]:
    """Returns the file's tokenizer with padding switched off, and its padding settings."""
    library = library_of(tokenizer_json, 'tokenizers/huggingface')
    padding = library.padding
    library.no_padding()
    return library, padding


def _end(library: tokenizers.Tokenizer, vocab_size: int) -> int | None:
    """Returns the special token that the file adds at the end of a text, or None."""
    encoding = library.encode('a')
    for token in encoding.ids:
        what = 'tokenizers/huggingface: the file adds a token that its vocabulary lacks'
        _tokens.known(token, vocab_size, what=what)
    return encoding.ids[-1] if encoding.special_tokens_mask[-1:] == [1] else None
