"""Rules of transformers' tokenizers for RoBERTa, XLM-R and NLLB beside those of their files."""

import json

import pytest
import tokenizers as library
from support.layouts import edit

from clip_jax import tokenizers
from clip_jax.convert import _tokenizer_files

VOCABULARY = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3, 'a': 4, 'cat': 5}
TEXT = {'context_length': 6, 'pool': 'cls', 'vocab_size': 9}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer whose file adds no special tokens, with two languages."""
    made = library.Tokenizer(library.models.WordLevel(VOCABULARY, '<unk>'))
    made.pre_tokenizer = library.pre_tokenizers.Metaspace('▁', prepend_scheme='always')
    made.add_special_tokens(['<s>', '<pad>', '</s>', '<unk>', 'eng_Latn', 'fra_Latn'])
    (tmp_path / 'tokenizer.json').write_text(made.to_str())
    settings = {'tokenizer_class': 'NllbTokenizer', 'pad_token': '<pad>', 'eos_token': '</s>'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    return tmp_path


def read(folder):
    config = {'hf_tokenizer_name': 'x'}
    return tokenizers.from_card(_tokenizer_files.open_clip(folder, TEXT, config, what='here'))


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, [6, 3, 2, 1, 1, 1]),
        ({'src_lang': 'fra_Latn'}, [7, 3, 2, 1, 1, 1]),
        ({'legacy_behaviour': True, 'add_prefix_space': True}, [3, 2, 6, 1, 1, 1]),
    ],
)
def test_the_language_of_nllb_is_before_the_text(folder, settings, expected):
    edit(folder / 'tokenizer_config.json', lambda c: c.update(settings))
    assert read(folder)('cat')[0].tolist() == expected


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'src_lang': 'xyz'}, "vocabulary has no token 'xyz', which NllbTokenizer adds"),
        ({'add_prefix_space': False}, 'puts a space before the text, .* add_prefix_space False'),
        (
            {'tokenizer_class': 'MBartTokenizer', 'src_lang': 'en_XX'},
            "src_lang 'en_XX', which only NllbTokenizer has, not MBartTokenizer; remove it",
        ),
    ],
)
def test_settings_that_the_file_contradicts_are_refused(folder, settings, message):
    edit(folder / 'tokenizer_config.json', lambda c: c.update(settings))
    with pytest.raises(ValueError, match=message):
        read(folder)
