"""Every key of the settings files of other programs: read, refused, or irrelevant, and why.

Pixels and tokens depend on these files. A key that no table knows is refused, except those that
begin with an underscore, which the programs write for themselves. `docs/foreign-settings.md` shows
the tables.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import shown

READ, REFUSED, IRRELEVANT = 'read', 'refused', 'irrelevant'


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is done with one key.

    Attributes:
        use: READ, REFUSED or IRRELEVANT.
        why: the rule; of a refused key, what to do instead.
        kind: the schema of its value (`runtime.foreign_json`).
        harmless: the values of a refused key that change nothing.
    """

    use: str
    why: str
    kind: Any = object
    harmless: tuple[Any, ...] = (None, False)


Table = Mapping[str, Setting]


def read(why: str, kind: Any) -> Setting:
    """Returns the entry of a key that is read; null means the default of the class."""
    return Setting(READ, why, (*kind, None) if isinstance(kind, tuple) else (kind, None))


def refused(why: str, *harmless: Any) -> Setting:
    """Returns the entry of a key that is refused unless its value is null, false or harmless."""
    return Setting(REFUSED, why, harmless=(None, False, *harmless))


def irrelevant(why: str) -> Setting:
    """Returns the entry of a key that changes neither pixels nor tokens."""
    return Setting(IRRELEVANT, why)


_SIZE = (int, [int], {foreign_json.ANY: int})
_NUMBERS = (float, [float])
# Special tokens are texts, or objects with the fields of `tokenizers.AddedToken`.
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_TOKEN = {'content': str, '__type': str, 'id': int, **dict.fromkeys(_FLAGS, bool)}
_SPECIAL = (str, _TOKEN)
_NAME = 'names a class or a file; it has no other effect'
_CODE = 'code of the folder is never run'

# transformers: image processors, in preprocessor_config.json or in processor_config.json.
IMAGE_PROCESSOR: Table = {
    'image_processor_type': read('the class, whose defaults fill missing keys', str),
    'feature_extractor_type': read('the old name of image_processor_type', str),
    'do_convert_rgb': read(
        'true lays transparent images on white (since transformers 5.22); with false transformers '
        'fails at images that are not RGB, which are converted here',
        bool,
    ),
    'do_resize': read('false needs a center crop', bool),
    'size': read(
        'a number, [height, width], {height, width} or {shortest_edge}; other forms are refused',
        _SIZE,
    ),
    'default_to_square': read('whether a number as size means both sides', bool),
    'resample': read("Pillow's number of the filter", int),
    'do_center_crop': read('without it, size must give a square', bool),
    'crop_size': read('must be the image size of the model', _SIZE),
    'do_rescale': read('folded into mean and std', bool),
    'rescale_factor': read('folded into mean and std', float),
    'do_normalize': read('false is mean 0 and std 1', bool),
    'image_mean': read('three numbers, or one for all channels', _NUMBERS),
    'image_std': read('three numbers, or one for all channels', _NUMBERS),
    'do_pad': read('without effect if pad_size is the size of the result', bool),
    'pad_size': read('another size than that of the result is refused', _SIZE),
    'use_square_size': read('true sets size to 224 x 224 (CLIPImageProcessor)', bool),
    'patch_size': read(
        'Siglip2ImageProcessor (NaFlex): must be that of the model; other classes are refused', int
    ),
    'max_num_patches': read(
        'Siglip2ImageProcessor (NaFlex): the patches of an image; other classes are refused', int
    ),
    'auto_map': refused(_CODE, {}),
    'data_format': irrelevant('the order of axes of their array'),
    'input_data_format': irrelevant('the order of axes of arrays given to them'),
    'return_tensors': irrelevant('the type of their arrays'),
    'device': irrelevant('where they compute'),
    'disable_grouping': irrelevant('how they batch'),
    'image_seq_length': irrelevant('for models that generate text'),
    'model_input_names': irrelevant('names of their arrays'),
    'processor_class': irrelevant(_NAME),
}

# transformers: the top level of processor_config.json.
PROCESSOR: Table = {
    'image_processor': read('as preprocessor_config.json, before which it goes', dict),
    'processor_class': irrelevant(_NAME),
    'chat_template': irrelevant('for models that generate text'),
    'auto_map': refused(_CODE, {}),
}

_ADDS = (
    'must be what tokenizer.json does, unless that adds no tokens; CLIPTokenizer always adds both'
)
_BERT = 'BertTokenizer: must be what tokenizer.json does'
_CALL = 'an argument of a call, which the context length of the model replaces'
_DECODE = 'for decoding only'
_GENERATE = 'for models that generate text'

# transformers: tokenizers, in tokenizer_config.json and special_tokens_map.json.
TOKENIZER: Table = {
    'tokenizer_class': read('the class, whose rules and defaults apply', str),
    'padding_side': read("'left' needs a text encoder that sees all tokens (SigLIP)", str),
    'truncation_side': read('which end of a long text is dropped', str),
    'model_max_length': read('fewer tokens than the model has positions are refused', float),
    'max_len': read('the old name of model_max_length', float),
    'model_input_names': read(
        "'attention_mask' is refused for SigLIP, which was trained without a mask", [str]
    ),
    'pad_token': read('the token after (or before) the text', _SPECIAL),
    'bos_token': read('the token before the text (CLIP)', _SPECIAL),
    'eos_token': read('the token after the text', _SPECIAL),
    'unk_token': read('what an unknown word becomes (CLIP)', _SPECIAL),
    'sep_token': read('a special token', _SPECIAL),
    'cls_token': read('a special token', _SPECIAL),
    'mask_token': read('a special token', _SPECIAL),
    'additional_special_tokens': read('special tokens', ([_SPECIAL],)),
    'extra_special_tokens': read('special tokens', ([_SPECIAL], {foreign_json.ANY: _SPECIAL})),
    'added_tokens_decoder': read(
        'added tokens; special_tokens_map.json and added_tokens.json then have no effect',
        {foreign_json.ANY: _TOKEN},
    ),
    'add_bos_token': read(_ADDS, bool),
    'add_eos_token': read(_ADDS, bool),
    'do_lower_case': read(
        f'SiglipTokenizer, Tipsv2Tokenizer; {_BERT}; the others have a rule of their own', bool
    ),
    'split_special_tokens': refused('special tokens in a text are always recognized'),
    'add_prefix_space': read('must be what tokenizer.json does', bool),
    'trim_offsets': irrelevant('offsets, not tokens'),
    'src_lang': read('NllbTokenizer: the language of texts; others are refused', str),
    'tgt_lang': irrelevant('for models that translate'),
    'legacy_behaviour': read(
        'NllbTokenizer: true puts the language after the text; others are refused', bool
    ),
    'sp_model_kwargs': refused('sampling is for training', {}),
    'legacy': read('false is refused for SiglipTokenizer; tokenizer.json has its own rule', bool),
    'strip_accents': read(_BERT, bool),
    'tokenize_chinese_chars': read(_BERT, bool),
    'do_basic_tokenize': Setting(REFUSED, 'not a rule of tokenizer.json', harmless=(None, True)),
    'never_split': refused('not a rule of tokenizer.json', []),
    'extra_ids': irrelevant('tokenizer.json lists the tokens that it adds (T5Tokenizer)'),
    'from_slow': refused('needs a conversion by transformers'),
    'fix_mistral_regex': refused('not a rule of these tokenizers'),
    'tokenizer_truncation': refused('save truncation in tokenizer.json'),
    'tokenizer_padding': refused('save padding in tokenizer.json'),
    'vocab': refused('save the vocabulary in tokenizer.json'),
    'merges': refused('save the merges in tokenizer.json'),
    'unk_id': refused('only in a Unigram model of tokenizer.json'),
    'gguf_file': refused('a file of another format'),
    'auto_map': refused(_CODE, {}),
    'init_inputs': refused('arguments without names', [], ()),
    'model_specific_special_tokens': refused('not a rule of these tokenizers', {}),
    'errors': irrelevant(_DECODE),
    'clean_up_tokenization_spaces': irrelevant(_DECODE),
    'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output': irrelevant(_DECODE),
    'spaces_between_special_tokens': irrelevant(_DECODE),
    'max_length': irrelevant(_CALL),
    'stride': irrelevant(_CALL),
    'truncation_strategy': irrelevant(_CALL),
    'pad_to_multiple_of': irrelevant(_CALL),
    'pad_token_type_id': irrelevant('models of one text have no token types'),
    'token_type_ids_pattern': irrelevant('models of one text have no token types'),
    'token_type_ids_include_special_tokens': irrelevant('models of one text have no token types'),
    'special_tokens_pattern': irrelevant('a mask, not tokens'),
    'chat_template': irrelevant(_GENERATE),
    'chat_control_tokens': irrelevant(_GENERATE),
    'response_template': irrelevant(_GENERATE),
    'response_schema': irrelevant(_GENERATE),
    'use_default_system_prompt': irrelevant(_GENERATE),
    'vocab_file': irrelevant('files are found by their names'),
    'merges_file': irrelevant('files are found by their names'),
    'tokenizer_file': irrelevant('files are found by their names'),
    'special_tokens_map_file': irrelevant('files are found by their names'),
    'name_or_path': irrelevant(_NAME),
    'processor_class': irrelevant(_NAME),
    'backend': irrelevant(_NAME),
    'is_local': irrelevant('where the files came from'),
    'local_files_only': irrelevant('where the files came from'),
    'files_loaded': irrelevant('names the files that were read'),
    'verbose': irrelevant('messages only'),
}

# open_clip: preprocess_cfg in open_clip_config.json.
OPEN_CLIP_PREPROCESS: Table = {
    'size': irrelevant("open_clip takes the model's image size"),
    'mode': refused('only RGB is supported', 'RGB'),
    'mean': read('three numbers, or one for all channels', _NUMBERS),
    'std': read('three numbers, or one for all channels', _NUMBERS),
    'interpolation': read("'bicubic' or 'bilinear'; 'random' is for training: bicubic here", str),
    'resize_mode': read("'shortest', 'longest' or 'squash'", str),
    'fill_color': read("only with 'longest', where only 0 is supported", int),
}

# open_clip: text_cfg.tokenizer_kwargs in open_clip_config.json.
OPEN_CLIP_TOKENIZER: Table = {
    'clean': read("'lower', 'whitespace' or 'canonicalize'", str),
    'strip_sep_token': read('the end token becomes 0 (with hf_tokenizer_name)', bool),
    'context_length': refused('give text_cfg.context_length'),
    'reduction_mask': refused('random words are for training', ''),
    'bpe_path': refused("only CLIP's vocabulary is known without hf_tokenizer_name"),
    'additional_special_tokens': refused('tokens that the vocabulary lacks', []),
    'language': refused(
        'transformers puts its src_lang back before each text; give src_lang in '
        'tokenizer_config.json'
    ),
    'tokenizer_mode': refused('not supported', ''),
    'tokenizer_name': refused('give hf_tokenizer_name'),
    'cache_dir': irrelevant('where open_clip keeps downloads'),
}

TABLES: dict[str, Table] = {
    'Image processors of transformers': IMAGE_PROCESSOR,
    'processor_config.json of transformers': PROCESSOR,
    'Tokenizers of transformers': TOKENIZER,
    'preprocess_cfg of open_clip': OPEN_CLIP_PREPROCESS,
    'tokenizer_kwargs of open_clip': OPEN_CLIP_TOKENIZER,
}


def checked(config: Any, table: Table, what: str) -> dict[str, Any]:
    """Checks keys and types of a settings file.

    Args:
        config: the content.
        table: its keys.
        what: the file; error messages start with it.

    Returns:
        The keys that are read; those with null, which stand for the default, are left out.

    Raises:
        ValueError: it is no object, has an unknown or refused key, or a value of another type.
    """
    foreign_json.check(config, {key: setting.kind for key, setting in table.items()}, what)
    for key, value in config.items():
        setting = table.get(key)
        if setting is None and not key.startswith('_'):
            raise ValueError(
                f'{what}: the key {key} is unknown, and may change what the model sees; remove it '
                'if it does not'
            )
        if setting and setting.use == REFUSED and value not in setting.harmless:
            raise ValueError(
                f'{what}: {key} is {shown(value)}, which is not supported: {setting.why}'
            )
    return {
        key: value
        for key, value in config.items()
        if key in table and table[key].use == READ and value is not None
    }


def markdown(table: Table) -> str:
    """Returns a table as the documentation shows it."""
    rows = [f'| `{key}` | {setting.use} | {setting.why} |' for key, setting in table.items()]
    return '\n'.join(['| key | use | rule |', '| --- | --- | --- |', *rows])
