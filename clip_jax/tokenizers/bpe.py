"""CLIP's byte-pair encoding (Radford et al. 2021), with its published 49,408 tokens."""

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

from clip_jax.tokenizers import _clean, _rows

# The published list of merges is not ours to copy; this package brings it and needs no PyTorch.
_PACKAGE, _FILE = 'openai-clip', 'clip/bpe_simple_vocab_16e6.txt.gz'
_SHA256 = '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'
_MERGES = 48894

# How OpenAI spells the start and the end token; open_clip writes <start_of_text>, <end_of_text>.
_SPECIAL = ('<|startoftext|>', '<|endoftext|>')
# A word, one digit, a run of other signs, or an English clitic.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END = '</w>'  # marks the last token of a word


@functools.cache
def _alphabet() -> list[str]:
    """Returns the sign that stands for each byte: itself where it shows, otherwise one above 255.

    The sorted order of these signs is the order of the first 256 ids.
    """
    hidden = iter(range(256, 512))
    shows = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in shows else next(hidden)) for byte in range(256)]


def _read_merges() -> list[tuple[str, str]]:
    """Returns the published merges, most important first; ValueError where they are not found."""
    try:
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
    return [tuple(line.split()) for line in lines[1 : _MERGES + 1]]


@functools.cache
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Returns the id of every token but the special, in their order, and every merge's rank."""
    merges = _read_merges()
    signs = sorted(_alphabet())
    tokens = [*signs, *(sign + _END for sign in signs), *map(''.join, merges)]
    return {token: i for i, token in enumerate(tokens)}, {pair: i for i, pair in enumerate(merges)}


@functools.lru_cache(maxsize=2**16)
def _encode_word(word: str) -> list[int]:
    """Returns the ids of one word: its bytes, the best-ranked neighbors merged while any are."""
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
    """Turns texts into rows `[SOT] ids [EOT] 0 ...`, equal to OpenAI's with `truncate=True`.

    Every text is repaired, then follows the rule `clean` ('lower' is OpenAI's; open_clip also has
    'whitespace' and 'canonicalize'). Where the start or the end token stands in a text, spelled as
    in `special`, it becomes that token.
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
        if context_length < 3:
            raise ValueError(
                f'tokenizers/bpe: context_length is {context_length}; start, token and end need 3.'
            )
        if len(special) != 2 or special[0] == special[1] or '' in special:
            raise ValueError(
                f'tokenizers/bpe: special is {special!r}; expected are two different strings, that '
                'of the start token and that of the end token.'
            )
        _vocabulary()  # Raises here rather than at the first text.
        self.context_length = context_length
        self.clean = _clean.check(clean)
        self._special = dict(zip(special, (self.sot_id, self.eot_id), strict=True))
        # Specials count where a match can begin: in '!<|endoftext|>' the run '!<|' wins and nothing
        # is special. Case matters little: after lower-casing "'ſ" is one more "'s".
        names = '|'.join(map(regex.escape, special))
        self._words = regex.compile(f'{names}|{_WORDS}', regex.IGNORECASE)

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns int32 [N, context_length]; too long a text is cut, its end token kept."""
        rows = [self._row(text) for text in _rows.as_list(texts)]
        return _rows.padded(rows, self.context_length, self.pad_id)

    def _row(self, text: str) -> list[int]:
        ids = []
        for word in self._words.findall(_clean.cleaned(text, self.clean, repair=True)):
            ids += [self._special[word]] if word in self._special else _encode_word(word)
        return [self.sot_id, *ids[: self.context_length - 2], self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of one row, cleaned as it was for encoding; signs may stand apart."""
        tokens = list(_vocabulary()[0])
        signs = ''.join(tokens[i] for i in _rows.content(ids, self) if i != self.sot_id)
        byte_of = {sign: byte for byte, sign in enumerate(_alphabet())}
        words = [bytes(byte_of[sign] for sign in word) for word in signs.split(_END)]
        return b' '.join(words).decode(errors='replace').strip()

    @property
    def card(self) -> dict[str, Any]:
        return {
            'name': 'bpe',
            'context_length': self.context_length,
            'special': [*self._special],
            'clean': self.clean,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> 'Tokenizer':
        """Makes the tokenizer that `card` describes."""
        return cls(card['context_length'], **_rows.given(card, 'special', 'clean'))

    def save(self, folder: str) -> None:
        """Writes `vocab.json` and `merges.txt`, as Hugging Face's libraries read CLIP's tokens."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ids, ranks = _vocabulary()
        ids = {**ids, _SPECIAL[0]: self.sot_id, _SPECIAL[1]: self.eot_id}
        (folder / 'vocab.json').write_text(json.dumps(ids, ensure_ascii=False))
        merges = [' '.join(pair) for pair in ranks]
        (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')


def create(texts: Iterable[str], *, context_length: int) -> Tokenizer:
    """Makes CLIP's tokenizer; its vocabulary is fixed, so the captions are not read."""
    del texts
    return Tokenizer(context_length)
