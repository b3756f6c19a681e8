"""The rules of transformers' Tipsv2Tokenizer, the tokenizer of TIPS v2: lowercase texts without
start and end tokens.
"""

import base64
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

from clip_jax.convert import _sentencepiece

NAME = 'Tipsv2Tokenizer'
MODEL = 'tokenizer.model'
TOKENS = {'unk_token': '<unk>', 'pad_token': '<pad>'}
_PRECOMPILED = 'Precompiled'


def content(path: pathlib.Path) -> dict[str, Any]:
    """Returns what stands for the `tokenizer.json` of a SentencePiece model.

    Pairs of tokens are merged in the order of the pieces that they make, as transformers does.

    Args:
        path: the model file.

    Raises:
        ValueError: the file is no SentencePiece model.
    """
    model = _sentencepiece.read(path)
    vocabulary = {piece: i for i, piece in enumerate(model.pieces)}
    merges = [
        (piece[:i], piece[i:])
        for piece in vocabulary
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    charsmap = base64.b64encode(model.charsmap).decode('ascii')
    rule = {'type': _PRECOMPILED, 'precompiled_charsmap': charsmap}
    added = [{'id': i, 'content': model.pieces[i], 'normalized': False} for i in model.added]
    return {
        'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': merges},
        'normalizer': rule if charsmap else None,
        'added_tokens': added,
    }


def rules(
    library: tokenizers.Tokenizer, content: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Sets the class's normalization and split into words.

    Args:
        library: the tokenizer; it is changed.
        content: the content of `tokenizer.json`, of whose rules only the compiled one is kept.
        given: the settings.
    """
    steps: list[Any] = [normalizers.Lowercase()] if given.get('do_lower_case', True) else []
    rule = content.get('normalizer') or {}
    for step in rule.get('normalizers', [rule]):
        if step.get('type') == _PRECOMPILED:
            steps.append(normalizers.Precompiled(base64.b64decode(step['precompiled_charsmap'])))
            break
    library.normalizer = normalizers.Sequence(steps)
    space: dict[str, Any] = {'replacement': '▁', 'prepend_scheme': 'always'}
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
    )
    library.decoder = decoders.Sequence(
        [decoders.Metaspace(**space), decoders.ByteFallback(), decoders.Fuse()]
    )
