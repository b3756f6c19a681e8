"""SentencePiece tokenizers (Kudo and Richardson 2018), trained on captions or read from a file."""

import base64
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from clip_jax import lookup
from clip_jax.tokenizers import _clean, _tokens

MOST_CAPTIONS = 1_000_000


class Tokenizer:
    """A SentencePiece tokenizer: `[BOS] ids [EOS] padding`; truncation keeps EOS.

    Args:
        model: the content of a SentencePiece model file.
        context_length: tokens per text.
        clean: the cleaning rule, applied before the model's own normalization.
        repair: whether CLIP's repair of encoding and HTML comes before `clean`.
        add_bos: whether sequences start with BOS; by default if the model has one.
        pad_id: by default the model's padding token, or else its EOS, as in SigLIP.
        pad_side: where padding is, 'right' or 'left' of the sequence.
        truncate_side: which end of a long text is dropped, 'right' or 'left'.
        special: texts that are tokens wherever they stand, with the spaces around them, and their
            ids, as in transformers' SiglipTokenizer; an end token in the text is not repeated.

    Raises:
        ValueError: the model cannot be read, has no EOS, or an argument does not fit it.
    """

    def __init__(
        self,
        model: bytes,
        context_length: int,
        *,
        clean: str = 'none',
        repair: bool = False,
        add_bos: bool | None = None,
        pad_id: int | None = None,
        pad_side: str = 'right',
        truncate_side: str = 'right',
        special: Mapping[str, int] | None = None,
    ):
        self._model = model
        self._library = sentencepiece.SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(
                f'tokenizers/sentencepiece: these {len(model)} bytes are no SentencePiece model.'
            ) from error
        self.vocab_size = self._library.vocab_size()
        self.eot_id = self._library.eos_id()
        if self.eot_id < 0:
            raise ValueError(
                'tokenizers/sentencepiece: the model has no end-of-text token; '
                'train it with an eos_id, since CLIP models pool at that token.'
            )
        bos_id = self._library.bos_id()
        if add_bos and bos_id < 0:
            raise ValueError(
                'tokenizers/sentencepiece: add_bos is true, but the model has no start token; '
                'set it to false.'
            )
        self._start = [] if add_bos is False or bos_id < 0 else [bos_id]
        if pad_id is None:
            pad_id = self._library.pad_id() if self._library.pad_id() >= 0 else self.eot_id
        self.pad_id = _tokens.known(
            pad_id, self.vocab_size, what='tokenizers/sentencepiece: pad_id'
        )
        self.clean, self.repair = _clean.check(clean), repair
        what = 'tokenizers/sentencepiece'
        self.pad_side = _tokens.side(pad_side, what=f'{what}: pad_side')
        self.truncate_side = _tokens.side(truncate_side, what=f'{what}: truncate_side')
        self._special = dict(special or {})
        for token in self._special.values():
            _tokens.known(token, self.vocab_size, what=f'{what}: special')
        names = '|'.join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        self._parts = re.compile(rf'\s*({names})\s*') if names else None
        least = len(self._start) + 2
        why = 'one token and the special tokens'
        self.context_length = _tokens.length(context_length, least, why, what=what)

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Tokenizes texts: int32 [N, context_length]; truncation keeps the end token."""
        # One text at a time: the library starts threads for each list, which makes short lists four
        # times slower, and input pipelines have threads of their own.
        sequences = [self._encode(text) for text in _tokens.as_list(texts)]
        return _tokens.padded(sequences, self.context_length, self.pad_id, self.pad_side)

    def _encode(self, text: str) -> list[int]:
        ids = self._ids(text)
        room = self.context_length - len(self._start) - 1
        ids = [*self._start, *_tokens.cut(ids, room, self.truncate_side)]
        return ids if self._special and ids[-1:] == [self.eot_id] else [*ids, self.eot_id]

    def _ids(self, text: str) -> list[int]:
        first, *others = self._parts.split(text) if self._parts else [text]
        ids = self._library.encode(_clean.utf8(_clean.cleaned(first, self.clean, self.repair)))
        # After a special token no space is added, unlike at the start of a text; it is not added
        # either after any other word, such as the unknown token.
        unknown = self._library.id_to_piece(self._library.unk_id())
        for part in others:
            if part in self._special:
                ids.append(self._special[part])
            elif cleaned := _clean.cleaned(part, self.clean, self.repair):
                before = len(self._library.encode(unknown))
                ids += self._library.encode(_clean.utf8(unknown + cleaned))[before:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of one sequence, as the model normalized it."""
        return self._library.decode(_tokens.content(ids, self))

    @property
    def card(self) -> dict[str, Any]:
        """The JSON dict that `from_card` makes the same tokenizer from."""
        return {
            'name': 'sentencepiece',
            'context_length': self.context_length,
            'clean': self.clean,
            'repair': self.repair,
            'add_bos': bool(self._start),
            'pad_id': self.pad_id,
            'pad_side': self.pad_side,
            'truncate_side': self.truncate_side,
            'special': self._special or None,
            'model': base64.b64encode(self._model).decode('ascii'),
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(
            base64.b64decode(card['model'], validate=True),
            card['context_length'],
            **_tokens.given(card, 'clean', 'repair', 'add_bos', 'pad_id', 'special'),
            **_tokens.given(card, 'pad_side', 'truncate_side'),
        )

    def save(self, folder: str) -> None:
        """Writes `spiece.model`, a SentencePiece model file."""
        place = epath.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / 'spiece.model').write_bytes(self._model)

    def __reduce__(self):
        return type(self).from_card, (self.card,)


def create(
    texts: Iterable[str],
    *,
    context_length: int,
    vocab_size: int = 32_000,
    path: str = '',
    algorithm: str = 'bpe',
) -> Tokenizer:
    """Loads a model file, or trains a vocabulary on captions.

    The same captions in the same order give the same model.

    Args:
        texts: training captions; the first 1,000,000 are read, none if `path` is given.
        context_length: tokens per text.
        vocab_size: the maximum size of the trained vocabulary.
        path: a SentencePiece model file; '' trains one.
        algorithm: 'bpe' or 'unigram'.

    Returns:
        The tokenizer.

    Raises:
        ValueError: there is no such file, or no such vocabulary can be trained on the captions.
    """
    model = _read(path) if path else _train(texts, vocab_size, algorithm)
    return Tokenizer(model, context_length)


def _read(path: str) -> bytes:
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f'tokenizers/sentencepiece: there is no model file {path!r}.')
    return file.read_bytes()


def _train(texts: Iterable[str], vocab_size: int, algorithm: str) -> bytes:
    lookup.check(algorithm, ['bpe', 'unigram'], what='tokenizers/sentencepiece algorithm')
    captions = _tokens.as_list(itertools.islice(texts, MOST_CAPTIONS))
    if not any(caption.strip() for caption in captions):
        raise ValueError(
            f'tokenizers/sentencepiece: no text in {len(captions)} captions; give captions to '
            'train a vocabulary on, or the path of a model file.'
        )
    logging.info(
        'sentencepiece: training a vocabulary of up to %d tokens (%s) on %d captions',
        vocab_size,
        algorithm,
        len(captions),
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(_clean.utf8, captions),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name='nmt_nfkc_cf',
            character_coverage=0.99999,  # characters that are left out become 'unknown'
            max_sentence_length=2
            ** 20,  # bytes; longer captions are skipped, by default those above 4,192
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            num_threads=16,  # is stored in the model, so it must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f'tokenizers/sentencepiece: no vocabulary of {vocab_size} tokens can be trained on '
            f'{len(captions)} captions; it needs 4 special tokens and every character. {error}'
        ) from error
    return model.getvalue()
