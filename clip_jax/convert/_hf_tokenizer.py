"""`tokenizer.json` and the settings beside it, put together as transformers 5 does.

Its classes for CLIP and SigLIP 2 take vocabulary, merges and added tokens from the file and have
rules of their own for the rest; other classes take the file as it stands.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

from clip_jax import lookup
from clip_jax.convert import (
    _cards,
    _files,
    _hf_text_tokenizer,
    _hf_tips_tokenizer,
    _settings,
)
from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import shown

JSON = 'tokenizer.json'
CONFIG = 'tokenizer_config.json'
SPECIAL = 'special_tokens_map.json'
ADDED = 'added_tokens.json'
VOCABULARY, MERGES = 'vocab.json', 'merges.txt'

_NAMED = [f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')]
_TOKENS = [{'id': int, 'content': str}]
_FILE = {
    'model': {'type': str, 'vocab': (dict, list)},
    'added_tokens': _TOKENS,
    'padding': ({'direction': str, 'pad_token': str}, None),
    'truncation': ({'direction': str}, None),
    'normalizer': (dict, None),
}
_TOKEN_FIELDS = ('content', 'single_word', 'lstrip', 'rstrip', 'normalized', 'special')
# The settings of BertTokenizer and their names in its file.
_BERT = {
    'do_lower_case': 'lowercase',
    'strip_accents': 'strip_accents',
    'tokenize_chinese_chars': 'handle_chinese_chars',
}
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

Options = dict[str, Any]
_library_of = lookup.module('tokenizers', 'huggingface').library_of


@dataclasses.dataclass(frozen=True)
class _Class:
    """What a class of transformers has whatever the file says.

    Attributes:
        tokens: the special tokens that the settings do not name.
        model: fields of the model in the file.
        rules: sets normalization and the split into words, by the content of the file and the
            settings.
        side: where padding is, if neither settings nor file say it.
    """

    tokens: Mapping[str, str]
    model: Mapping[str, Any]
    rules: Callable[[tokenizers.Tokenizer, Mapping[str, Any], Options], None]
    side: str


def _clip(library: tokenizers.Tokenizer, content: Mapping[str, Any], given: Options) -> None:
    del content, given
    spaces = normalizers.Replace(tokenizers.Regex(r'\s+'), ' ')
    library.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior='removed', invert=True)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = tokenizers.decoders.ByteLevel()


def _gemma(library: tokenizers.Tokenizer, content: Mapping[str, Any], given: Options) -> None:
    del content, given
    # SigLIP 2 was trained on lowercase texts; transformers' class GemmaTokenizer does not lower,
    # and its Siglip2Tokenizer, made for these models, does.
    library.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(' ', '▁')]
    )
    library.pre_tokenizer = pre_tokenizers.Split(' ', behavior='merged_with_previous')
    parts = [tokenizers.decoders.Replace('▁', ' '), tokenizers.decoders.ByteFallback()]
    library.decoder = tokenizers.decoders.Sequence([*parts, tokenizers.decoders.Fuse()])


_END = '<|endoftext|>'
_OF_CLIP = {'bos_token': '<|startoftext|>', 'eos_token': _END, 'unk_token': _END, 'pad_token': _END}
_OF_GEMMA = {
    name: f'<{name.removesuffix("_token")}>' for name in _NAMED if name[:3] not in 'sepcls'
}
_BPE = {'type': 'BPE', 'dropout': None, 'ignore_merges': False}
_BYTES = {**_BPE, 'fuse_unk': True, 'byte_fallback': True}
_SUFFIX = {'continuing_subword_prefix': '', 'end_of_word_suffix': '</w>'}
_CLASSES = {
    'CLIPTokenizer': _Class(
        _OF_CLIP, {**_BPE, **_SUFFIX, 'fuse_unk': False, 'byte_fallback': False}, _clip, 'right'
    ),
    **dict.fromkeys(
        ('GemmaTokenizer', 'Siglip2Tokenizer'),
        _Class(_OF_GEMMA, _BYTES, _gemma, 'left'),
    ),
    _hf_tips_tokenizer.NAME: _Class(
        _hf_tips_tokenizer.TOKENS, {**_BYTES, 'unk_token': None}, _hf_tips_tokenizer.rules, 'right'
    ),
}


def options(folder: pathlib.Path) -> Options:
    """Returns the settings of a folder's tokenizer that are read.

    Raises:
        ValueError: a key is unknown or refused, or a value has another type.
    """
    given: Options = {}
    for name in (CONFIG, SPECIAL):
        # As in transformers, the older file goes before, unless the other lists all tokens.
        if (folder / name).is_file() and 'added_tokens_decoder' not in given:
            content = _files.json_of(folder / name)
            given |= _settings.checked(content, _settings.TOKENIZER, str(folder / name))
    return given


def class_of(given: Options, default: str) -> str:
    """Returns the name of the tokenizer's class without the suffix `Fast`."""
    return given.get('tokenizer_class', default).removesuffix('Fast')


def check_use(given: Options, text: Mapping[str, Any], what: str) -> None:
    """Raises a ValueError for settings that make transformers use the tokens in another way."""
    length = given.get('model_max_length', given.get('max_len'))
    if length is not None and length < text['context_length']:
        raise ValueError(
            f'{what}: model_max_length is {length:g}, fewer than the {text["context_length"]} '
            'positions of the model; make them equal'
        )
    if text['pool'] == 'last' and 'attention_mask' in given.get('model_input_names', []):
        raise ValueError(
            f"{what}: model_input_names has 'attention_mask', but this text encoder sees the "
            "padding, as SigLIP's were trained; leave 'input_ids' only"
        )


def sides(given: Options, text: Mapping[str, Any], what: str, pad: str = 'right') -> Options:
    """Returns the sides of padding and truncation; `pad` is the default of padding."""
    pad, truncate = given.get('padding_side', pad), given.get('truncation_side', 'right')
    for key, value in (('padding_side', pad), ('truncation_side', truncate)):
        if value not in ('left', 'right'):
            raise ValueError(f"{what}: {key} is {shown(value)}; expected 'left' or 'right'")
    if pad == 'left' and text.get('causal'):
        raise ValueError(
            f'{what}: padding_side is left, which needs a mask of padding in a text encoder that '
            'reads from left to right; set it to right'
        )
    found = {'pad_side': pad, 'truncate_side': truncate}
    return {key: value for key, value in found.items() if value != 'right'}


def card(
    folder: pathlib.Path, text: Mapping[str, Any], given: Options, name: str, how: Options
) -> dict[str, Any] | None:
    """Reads a `tokenizer.json`, or for CLIP `vocab.json` and `merges.txt`, and for TIPS v2 a
    SentencePiece model.

    Args:
        folder: the folder of the weights.
        text: the text encoder of the model's card.
        given: the settings, from `options`.
        name: the tokenizer's class.
        how: fields of the card that the layout decides.

    Returns:
        The card's `tokenizer`; None if there is no such file.

    Raises:
        ValueError: a file is damaged, or needs what the tokenizer cannot do.
    """
    content = _content(folder, name, given)
    if content is None:
        return None
    what, rules = str(folder / JSON), _CLASSES.get(name)
    bert = _hf_text_tokenizer.BERT_TOKENS if name == 'BertTokenizer' else {}
    given = {**(rules.tokens if rules else bert), **given}
    with _cards.understood(what):
        library, made = _completed(folder, content, given, rules)
    if name == 'BertTokenizer':
        _check_bert(content, given, what)
    _hf_text_tokenizer.check(content, given, name, what)
    if name == _hf_text_tokenizer.NLLB:
        made = _hf_text_tokenizer.of_language(library, given, what)
    padding, truncation = _directions(content)
    chosen = {**truncation, **padding, **given}
    fields = {
        'name': 'huggingface',
        'context_length': text['context_length'],
        'tokenizer_json': made,
        **sides(chosen, text, what, rules.side if rules else 'right'),
    }

    def token(key: str) -> int | None:
        found = _token(chosen.get(f'{key}_token'))
        return library.token_to_id(found.content) if found else None

    if token('pad') is not None:
        fields['pad_id'] = token('pad')
    # If the file adds no special tokens, or others than the model needs, the tokenizer adds them.
    if 'eot_id' in how:
        fields['start_ids'] = [x for x in (token('cls'),) if x is not None]
    elif not library.num_special_tokens_to_add(is_pair=False):
        start = token('bos') if given.get('add_bos_token') else None
        end = token('eos') if given.get('add_eos_token') else None
        fields |= {'start_ids': [] if start is None else [start], 'eot_id': end}
        if not given.get('add_eos_token') and text['pool'] != 'mean':
            raise ValueError(
                f'{what}: adds no end token, at which the model pools; add a post_processor that '
                f'does, or set add_eos_token to true in {CONFIG}'
            )
    elif name != 'CLIPTokenizer':  # which always adds both
        _check_added(library, given, what)
    return {**fields, **how}


def _check_bert(content: Mapping[str, Any], given: Options, what: str) -> None:
    """Raises a ValueError if settings of BertTokenizer are not those of its file."""
    does = content.get('normalizer') or {}
    for key, name in _BERT.items():
        if key in given and given[key] != does.get(name):
            raise ValueError(
                f'{what}: its normalizer has {name} {does.get(name)}, but {CONFIG} has {key} '
                f'{given[key]}; make them agree'
            )


def _check_added(library: tokenizers.Tokenizer, given: Options, what: str) -> None:
    """Raises a ValueError if the file does not add the tokens that the settings ask for."""
    mask = library.encode('a').special_tokens_mask
    for name, added in (('bos', mask[0]), ('eos', mask[-1])):
        asked = given.get(f'add_{name}_token')
        if asked is not None and asked != bool(added):
            raise ValueError(
                f'{what}: its post_processor {"adds" if added else "does not add"} the '
                f'{name}_token, but {CONFIG} has add_{name}_token {asked}; make them agree'
            )


def _content(folder: pathlib.Path, name: str, given: Options) -> dict[str, Any] | None:
    """Returns the content of a `tokenizer.json`, or what stands for one."""
    if (folder / JSON).is_file():
        return _files.json_of(folder / JSON, _FILE)
    if name == 'BertTokenizer' and (folder / _hf_text_tokenizer.WORDS).is_file():
        return _hf_text_tokenizer.bert(folder / _hf_text_tokenizer.WORDS, given)
    if name == _hf_tips_tokenizer.NAME and (folder / _hf_tips_tokenizer.MODEL).is_file():
        return _hf_tips_tokenizer.content(folder / _hf_tips_tokenizer.MODEL)
    if name != 'CLIPTokenizer' or not (folder / MERGES).is_file():
        return None
    vocabulary = _files.json_of(folder / VOCABULARY, {foreign_json.ANY: int})
    try:
        lines = (folder / MERGES).read_text(encoding='utf-8').split('\n')
    except ValueError as error:
        raise ValueError(f'{folder / MERGES}: not text in UTF-8') from error
    merges = [line for line in lines if line.strip() and not line.startswith('#version')]
    return {'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': merges}}


def _directions(content: Mapping[str, Any]) -> tuple[Options, Options]:
    """Returns the file's own settings of padding and truncation, under their names elsewhere."""
    padding, truncation = (content.get(key) or {} for key in ('padding', 'truncation'))
    padding = {'padding_side': padding.get('direction'), 'pad_token': padding.get('pad_token')}
    truncation = {'truncation_side': truncation.get('direction')}
    padding, truncation = (
        {key: value for key, value in x.items() if value} for x in (padding, truncation)
    )
    for found in (padding, truncation):
        found |= {key: found[key].lower() for key in found if key.endswith('_side')}
    return padding, truncation


def _completed(
    folder: pathlib.Path, content: dict[str, Any], given: Options, rules: _Class | None
) -> tuple[tokenizers.Tokenizer, str]:
    """Returns the library's tokenizer with all added tokens, and its file."""
    what = str(folder / JSON)
    if rules is None:
        there = (folder / JSON).is_file()
        text = (folder / JSON).read_text(encoding='utf-8') if there else json.dumps(content)
        library = _library_of(text, what)
    else:
        text, library = '', _rebuilt(content, rules, given, what)
    added = _added(folder, content, given)
    known = {token.content: token for token in added}
    named = [_token(given.get(key)) for key in _NAMED]
    extra = given.get('extra_special_tokens') or given.get('additional_special_tokens') or []
    extra = [_token(x) for x in (extra.values() if isinstance(extra, dict) else extra)]
    wanted = added + [known.get(x.content, x) for x in [*named, *extra] if x]
    before = library.get_vocab_size(), len(library.get_added_tokens_decoder())
    library.add_tokens(wanted)
    after = library.get_vocab_size(), len(library.get_added_tokens_decoder())
    if rules is _CLASSES['CLIPTokenizer']:
        eos, bos = (_token(given[key]).content for key in ('eos_token', 'bos_token'))
        pairs: list[Any] = [(x, library.token_to_id(x)) for x in (eos, bos)]
        library.post_processor = processors.RobertaProcessing(
            *pairs, trim_offsets=False, add_prefix_space=False
        )
    return library, text if text and before == after else library.to_str()


def _rebuilt(
    content: dict[str, Any], rules: _Class, given: Options, what: str
) -> tokenizers.Tokenizer:
    model = content['model']
    if model.get('type', 'BPE') != 'BPE' or not isinstance(model['vocab'], dict):
        raise ValueError(
            f'{what}: the class of this tokenizer needs a model of type BPE, not '
            f'{model.get("type")!r}; with tokenizer_class PreTrainedTokenizerFast in {CONFIG} the '
            'file is used as it stands'
        )
    unknown = _token(given['unk_token']).content
    kept = {'vocab': model['vocab'], 'merges': model['merges'], 'unk_token': unknown}
    empty = dict.fromkeys(('normalizer', 'pre_tokenizer', 'decoder', 'truncation', 'padding'))
    made = {**content, **empty, 'added_tokens': [], 'model': {**kept, **rules.model}}
    if rules is _CLASSES['CLIPTokenizer']:
        made['post_processor'] = None
    library = _library_of(json.dumps({'version': '1.0', **made}), what)
    rules.rules(library, content, given)
    return library


def _added(
    folder: pathlib.Path, content: Mapping[str, Any], given: Options
) -> list[tokenizers.AddedToken]:
    """Returns the added tokens by id, of the settings or of the older files."""
    if 'added_tokens_decoder' in given:
        listed = {int(i): fields for i, fields in given['added_tokens_decoder'].items()}
    else:
        listed = {}
        if (folder / ADDED).is_file():
            older = _files.json_of(folder / ADDED, {foreign_json.ANY: int})
            listed = {i: {'content': text} for text, i in older.items()}
        listed |= {x['id']: x for x in content.get('added_tokens', [])}
    return [_token(fields) for _, fields in sorted(listed.items())]


def tokens_of(given: Options) -> list[tokenizers.AddedToken]:
    """Returns the special and added tokens of settings that SiglipTokenizer has, once each."""
    listed = given.get('added_tokens_decoder', {}).values()
    found = {fields['content']: _token(fields) for fields in listed}
    extra = given.get('extra_special_tokens') or given.get('additional_special_tokens') or []
    extra = extra.values() if isinstance(extra, dict) else extra
    for value in [*(given.get(key) for key in _NAMED), *extra]:
        if value is not None:
            found.setdefault(content_of(value), _token(value))
    return [*found.values()]


def content_of(value: Any) -> str:
    """Returns the text of a special token."""
    return value if isinstance(value, str) else value['content']


def _token(value: Any) -> Any:
    """Returns a special token as the library has it; None for none."""
    if value is None or isinstance(value, tokenizers.AddedToken):
        return value
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=True)
    fields: dict[str, Any] = {key: x for key, x in value.items() if key not in ('__type', 'id')}
    if unknown := [key for key in fields if key not in _TOKEN_FIELDS]:
        raise ValueError(f'the token {content_of(value)!r} has unknown fields: {unknown}')
    return tokenizers.AddedToken(fields.pop('content'), **{'special': True, **fields})
