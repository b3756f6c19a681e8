"""Tokenizer files next to a checkpoint, used as the checkpoint's own program uses them.

`openai`, `open_clip`, `huggingface` and `big_vision` return a card's `tokenizer`, or None if there
are no files: the model then takes tokens only.
"""

import base64
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import sentencepiece
import tokenizers
from absl import logging

from clip_jax import lookup
from clip_jax.convert import (
    _big_vision_tokenizer,
    _cards,
    _files,
    _hf_tips_tokenizer,
    _hf_tokenizer,
    _sentencepiece,
    _settings,
)
from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import shown
from clip_jax.tokenizers import from_card

PIECES = ('spiece.model', 'tokenizer.model', 'sentencepiece.model')
CARD = 'tokenizer_card.json'  # our own complete card, written next to the others
_FIELDS = {
    'name': str,
    'context_length': int,
    'clean': str,
    'repair': bool,
    'special': ([str], {foreign_json.ANY: int}, None),
    'pad_id': (int, None),
    'eot_id': (int, None),
    'start_ids': ([int], None),
    'add_bos': (bool, None),
    'pad_side': str,
    'truncate_side': str,
    'tokenizer_json': str,
    'model': str,
}
CLIP_VOCABULARY = 49408
# SigLIP's vocabulary (big_vision's c4_en) has a padding token, but its models were trained with the
# end token, 1, as padding. SigLIP 2 (Gemma's vocabulary) pads with the padding token, 0.
SIGLIP_VOCABULARY, SIGLIP_PAD = 32000, 1
_KEEP_CASE = 'remove_punctuation_keep_case'
_OF_SIGLIP = {'eos': '</s>', 'unk': '<unk>', 'pad': '</s>'}  # the class's special tokens
# open_clip's spelling of CLIP's special tokens; OpenAI's is <|startoftext|>, <|endoftext|>.
OPEN_CLIP_SPECIAL = ['<start_of_text>', '<end_of_text>']
# The open_clip cleaning rule that comes closest to each of ours.
_OPEN_CLIP_RULES = {
    'none': 'whitespace',
    'whitespace': 'whitespace',
    'lower': 'lower',
    'lower_ascii': 'lower',
    'canonicalize': 'canonicalize',
    'remove_punctuation': 'canonicalize',
    _KEEP_CASE: 'canonicalize',
}

Card = dict[str, Any]


def openai(text: Mapping[str, Any]) -> Card | None:
    """Returns CLIP's tokenizer, which all of OpenAI's checkpoints use."""
    if text['vocab_size'] != CLIP_VOCABULARY:
        return None
    return {'name': 'bpe', 'context_length': text['context_length'], 'clean': 'lower'}


def open_clip(
    folder: pathlib.Path, text: Mapping[str, Any], config: Mapping[str, Any], *, what: str
) -> Card | None:
    """Returns CLIP's tokenizer, or the files of the Hugging Face one that `text_cfg` names."""
    what = f'{what}: text_cfg.tokenizer_kwargs'
    options = config.get('tokenizer_kwargs')
    options = _settings.checked(
        {} if options is None else options, _settings.OPEN_CLIP_TOKENIZER, what
    )
    named = bool(config.get('hf_tokenizer_name'))
    clean = options.get('clean', 'whitespace' if named else 'lower')
    lookup.check(clean, ['lower', 'whitespace', 'canonicalize'], what=f'{what}.clean')
    if own := _own(folder):
        return own
    if not named:
        card = openai(text)
        return card and {**card, 'special': OPEN_CLIP_SPECIAL, 'clean': clean}
    how: Card = {'clean': clean, 'repair': True}
    if options.get('strip_sep_token'):  # replaced by padding
        how |= {'eot_id': 0, 'pad_id': 0}
    given = _hf_tokenizer.options(folder)
    kind = _hf_tokenizer.class_of(given, '')
    return _hf_tokenizer.card(folder, text, given, kind, how) or _pieces(folder, text, how)


def huggingface(folder: pathlib.Path, text: Mapping[str, Any]) -> Card | None:
    """Returns `tokenizer.json`, a SentencePiece model, or CLIP's tokenizer."""
    if own := _own(folder):
        return own
    given, what = _hf_tokenizer.options(folder), str(folder / _hf_tokenizer.CONFIG)
    _hf_tokenizer.check_use(given, text, what)
    siglip = text['pool'] == 'last'
    others = {'bert': 'BertTokenizer', 'nllb': _hf_tips_tokenizer.NAME}
    usual = 'SiglipTokenizer' if siglip else others.get(text.get('name', ''), 'CLIPTokenizer')
    kind = _hf_tokenizer.class_of(given, usual)
    if kind == 'SiglipTokenizer' and (folder / PIECES[0]).is_file():
        return _siglip(folder, text, given, what)
    how: Card = {}
    if kind == 'SiglipTokenizer' and text['vocab_size'] == SIGLIP_VOCABULARY:
        how = {'clean': 'remove_punctuation', 'pad_id': SIGLIP_PAD}
    elif kind == 'SiglipTokenizer':
        how = {'clean': 'lower'}
    found = _hf_tokenizer.card(folder, text, given, kind, how)
    return found or (None if siglip else openai(text)) or _pieces(folder, text, how)


def _siglip(
    folder: pathlib.Path, text: Mapping[str, Any], given: dict[str, Any], what: str
) -> Card:
    """Returns the SentencePiece model of transformers' SiglipTokenizer."""
    if not given.get('legacy', True):
        raise ValueError(f'{what}: legacy is false; only the published rule, true, is supported')
    library = _sentencepiece.library(folder / PIECES[0])
    tokens = {f'{name}_token': token for name, token in _OF_SIGLIP.items()} | given
    special = {}
    with _cards.understood(what):
        added = _hf_tokenizer.tokens_of(tokens)
    for token in added:
        special[token.content] = library.piece_to_id(token.content)
        if library.id_to_piece(special[token.content]) != token.content:
            raise ValueError(f'{what}: the token {token.content!r} is not in {PIECES[0]}')
        if token.single_word:  # lstrip and rstrip have no effect: the class drops these spaces
            raise ValueError(f'{what}: single_word of the token {token.content!r} is unsupported')
    for name, number in (('eos', library.eos_id()), ('unk', library.unk_id())):
        token = _hf_tokenizer.content_of(tokens[f'{name}_token'])
        if special[token] != number:
            raise ValueError(
                f'{what}: {name}_token is {shown(token)}, but that of {PIECES[0]} is '
                f'{library.id_to_piece(number)!r}'
            )
    how = {
        'clean': 'remove_punctuation' if given.get('do_lower_case', True) else _KEEP_CASE,
        'pad_id': special[_hf_tokenizer.content_of(tokens['pad_token'])],
        'special': special,
    }
    card = _pieces(folder, text, how | _hf_tokenizer.sides(given, text, what))
    assert card is not None  # the file is there
    return card


def big_vision(folder: pathlib.Path, text: Mapping[str, Any]) -> Card | None:
    """Returns a SentencePiece model with the padding that the models were trained with."""
    how = {'clean': 'lower_ascii', **_big_vision_tokenizer.padding(text['vocab_size'])}
    if own := _own(folder):
        return own
    card = _pieces(folder, text, how)
    if card:
        model = base64.b64decode(card['model'])
        model = _big_vision_tokenizer.without_extra(model, text['vocab_size'])
        card['model'] = base64.b64encode(model).decode('ascii')
    return card


def _own(folder: pathlib.Path) -> Card | None:
    """Returns our own card; ValueError if it names a module that the program has not imported: a
    downloaded folder does not choose which code runs.
    """
    if not (folder / CARD).is_file():
        return None
    card = _files.json_of(folder / CARD)
    name = str(card.get('name'))
    if '.' not in name:
        foreign_json.check(card, _FIELDS, str(folder / CARD))
    elif name not in sys.modules:
        raise ValueError(
            f'{folder / CARD}: names the tokenizer {name}, a module outside of clip_jax; to load '
            f'this folder would run it. If you trust it, import it before: import {name}'
        )
    return card


def _pieces(folder: pathlib.Path, text: Mapping[str, Any], how: Card) -> Card | None:
    """Returns a SentencePiece model; no published layout adds BOS."""
    for name in PIECES:
        if (folder / name).is_file():
            _sentencepiece.library(folder / name)  # an error names the file
            model = base64.b64encode((folder / name).read_bytes()).decode('ascii')
            card = {'name': 'sentencepiece', 'context_length': text['context_length']}
            return {**card, 'add_bos': False, **how, 'model': model}
    return None


def save(folder: pathlib.Path, card: Mapping[str, Any] | None) -> None:
    """Writes the tokenizer files of an exported model.

    Args:
        folder: the exported model's folder.
        card: the card's `tokenizer`; None writes nothing.

    The folder gets our own card, and the files of transformers where it has such a tokenizer; a
    warning says if it has not.
    """
    if card is None:
        return
    tokenizer = from_card(card)
    card = tokenizer.card  # with every field
    tokenizer.save(folder)
    (folder / CARD).write_text(json.dumps(card, indent=1) + '\n')
    config: Card = {'model_max_length': card['context_length']}
    if '.' in card['name']:  # a plug-in
        if not hasattr(tokenizer, 'hf_config'):
            logging.warning(
                'transformers cannot read the tokenizer %s, which has no hf_config; use clip_jax '
                'to tokenize for this model',
                card['name'],
            )
            return
        config |= tokenizer.hf_config(folder)
    elif card['name'] == 'bpe':
        config['tokenizer_class'] = 'CLIPTokenizer'
    elif card['name'] == 'huggingface':
        library = tokenizers.Tokenizer.from_str(card['tokenizer_json'])
        # transformers applies no other rules than those of the file.
        if card['clean'] in ('lower', 'lower_ascii'):
            lower = tokenizers.normalizers.Lowercase()
            rules = [lower, library.normalizer] if library.normalizer else [lower]
            library.normalizer = tokenizers.normalizers.Sequence(rules)
            library.save(str(folder / _hf_tokenizer.JSON))
        names = {'eos_token': tokenizer.eot_id, 'pad_token': tokenizer.pad_id}
        known = {name: token for name, token in names.items() if token is not None}
        config |= {name: library.id_to_token(token) for name, token in known.items()}
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    elif card['add_bos']:
        logging.warning(
            'transformers has no SentencePiece tokenizer that adds BOS as this one does; use '
            'clip_jax to tokenize for this model'
        )
        return
    else:
        library = sentencepiece.SentencePieceProcessor(model_file=str(folder / PIECES[0]))
        names = {'unk_token': library.unk_id(), 'eos_token': library.eos_id()}
        names['pad_token'] = tokenizer.pad_id
        config |= {name: library.id_to_piece(token) for name, token in names.items()}
        config['tokenizer_class'] = 'SiglipTokenizer'
    (folder / _hf_tokenizer.CONFIG).write_text(json.dumps(config, indent=2) + '\n')


def open_clip_config(card: Mapping[str, Any] | None) -> Card:
    """Returns the fields of open_clip's `text_cfg` for a tokenizer in the same folder."""
    if card is None or (card['name'] == 'bpe' and card['clean'] == 'lower'):
        return {}
    if '.' in card['name']:  # a plug-in
        return {'hf_tokenizer_name': 'local', 'tokenizer_kwargs': {'clean': 'whitespace'}}
    options = {'tokenizer_kwargs': {'clean': _OPEN_CLIP_RULES[card['clean']]}}
    # Any name works: open_clip prefers the files in the same folder.
    return options if card['name'] == 'bpe' else {'hf_tokenizer_name': 'local', **options}
