"""Settings files of other programs: every key is read, refused by name, or irrelevant."""

import contextlib
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from support.process import ROOT
from support.small_models import made, pieces, words_json

import clip_jax
from clip_jax import convert, tokenizers
from clip_jax.convert import _image_processor, _settings, _tokenizer_files, open_clip
from clip_jax.data.preprocess import Preprocess

PROCESSORS = {False: 'CLIPImageProcessor', True: 'SiglipImageProcessor'}
NUMBERS = {'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.5, 0.4, 0.3]}
SIGLIP = {'vocab_size': 60, 'context_length': 9, 'pool': 'last', 'causal': False}
CLIP = {**SIGLIP, 'pool': 'eot', 'causal': True}


def read(folder: pathlib.Path, config, *, siglip: bool = False, size: int = 32) -> dict:
    (folder / 'preprocessor_config.json').write_text(json.dumps(config))
    return _image_processor.read(folder, size, usual=PROCESSORS[siglip])


def test_a_nested_image_processor_goes_before_the_older_file(tmp_path):
    older = {'size': 32, 'crop_size': 32, 'resample': 2}
    nested = {'size': {'shortest_edge': 32}, 'crop_size': 32, 'resample': 1, **NUMBERS}
    assert read(tmp_path, older)['interpolation'] == 'bilinear'
    newer = {'image_processor': nested, 'processor_class': 'CLIPProcessor'}
    (tmp_path / 'processor_config.json').write_text(json.dumps(newer))
    found = read(tmp_path, older)
    assert (found['interpolation'], found['mean']) == ('lanczos', NUMBERS['image_mean'])
    for content in ({'processor_class': 'CLIPProcessor'}, {'image_processor': None}):
        (tmp_path / 'processor_config.json').write_text(json.dumps(content))
        assert read(tmp_path, older)['interpolation'] == 'bilinear'


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ({}, {'resize': 'shortest', 'resize_to': None, 'rgb': 'white', 'crop': 'down'}),
        ({'image_processor_type': 'CLIPImageProcessorFast'}, {'interpolation': 'bicubic'}),
        ({'size': 40}, {'resize': 'shortest', 'resize_to': 40}),
        ({'size': {'height': 40, 'width': 36}}, {'resize': 'squash', 'resize_to': [40, 36]}),
        ({'size': [32, 32], 'do_center_crop': False}, {'resize': 'squash', 'resize_to': None}),
        ({'size': 40, 'default_to_square': True}, {'resize': 'squash', 'resize_to': [40, 40]}),
        ({'do_resize': False}, {'resize': 'none', 'resize_to': None}),
        ({'do_normalize': False}, {'mean': [0.0] * 3, 'std': [1.0] * 3}),
        ({'do_normalize': False, 'do_rescale': False}, {'std': [1 / 255] * 3}),
        ({**NUMBERS, 'rescale_factor': 2 / 255}, {'mean': [0.05, 0.1, 0.15]}),
        ({'image_std': 0.25}, {'std': [0.25] * 3}),
        ({'do_pad': True}, {'resize': 'shortest'}),
        ({'do_convert_rgb': None, 'return_tensors': 'pt', '_own': 1}, {'resize': 'shortest'}),
    ],
)
def test_keys_of_image_processors(tmp_path, config, expected):
    found = read(tmp_path, {'size': 32, 'crop_size': 32, **config})
    for key, value in expected.items():
        numbers = key in ('mean', 'std')
        assert found[key] == (pytest.approx(value) if numbers else value)


def test_a_number_as_size_makes_no_square_of_siglips_images(tmp_path):
    with pytest.raises(
        ValueError, match=r'do_center_crop is false and size does not make images s'
    ):
        read(tmp_path, {'size': 32}, siglip=True)
    assert read(tmp_path, {'size': {'height': 32, 'width': 32}}, siglip=True)['std'] == [0.5] * 3


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ([], 'is a list of 0; expected an object'),
        ({'zoom': 2}, 'the key zoom is unknown'),
        ({'resample': 99}, 'resample is 99; expected 0 to 5'),
        ({'resample': []}, 'resample is a list of 0; expected an integer'),
        ({'resample': 'bicubic'}, "resample is 'bicubic'; expected an integer"),
        ({'image_mean': [1, 2]}, 'image_mean has 2 numbers; expected 3'),
        ({'image_std': 0}, r'std is \(0.0, 0.0, 0.0\); expected three numbers'),
        ({'image_std': float('nan')}, 'image_std is nan; expected a number'),
        ({'image_mean': 1e6}, 'mean is .* from -100 to 100'),
        ({'rescale_factor': 0}, 'rescale_factor is 0; expected above 0'),
        ({'size': 24, 'do_center_crop': False}, 'do_center_crop is false and size does not'),
        ({'do_resize': False, 'do_center_crop': False}, 'do_center_crop is false and do_resize d'),
        ({'size': {'longest_edge': 32}}, r"size is \{'longest_edge': 32\}; supported are"),
        ({'size': 0}, 'all positive'),
        ({'crop_size': 28}, 'crop_size gives 28 x 28 pixels, but the model takes 32 x 32'),
        ({'crop_size': {'height': 32, 'width': 28}}, 'crop_size gives 32 x 28 pixels'),
        ({'do_pad': True, 'pad_size': 40}, 'do_pad with a pad_size other than 32 x 32'),
        ({'image_processor_type': 'ViTImageProcessor'}, "image_processor_type: there is no 'ViT"),
        (
            {'image_processor_type': 'Siglip2ImageProcessor'},
            'is Siglip2ImageProcessor; expected CLIPImageProcessor, as the model .* of 32 x 32',
        ),
        (
            {'max_num_patches': 256},
            'max_num_patches is 256, which belongs to .*NaFlex',
        ),
        (
            {'auto_map': {'AutoImageProcessor': 'a.B'}},
            'auto_map .* code of the folder',
        ),
    ],
)
def test_what_image_processors_may_not_say(tmp_path, config, message):
    config = {'size': 32, 'crop_size': 32, **config} if isinstance(config, dict) else config
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, config)
    assert str(error.value).startswith(str(tmp_path / 'preprocessor_config.json'))
    assert '\n' not in str(error.value)


def test_a_folder_without_image_processor_is_warned_of(tmp_path, caplog):
    found = _image_processor.read(tmp_path, 48, usual=PROCESSORS[True])
    assert (found['size'], found['resize'], found['resize_to']) == (48, 'squash', None)
    assert 'has neither processor_config.json nor preprocessor_config.json' in caplog.text


def test_settings_change_pixels_as_they_say(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (50, 70, 3), np.uint8)
    image = Image.fromarray(array)

    def pixels(**config) -> np.ndarray:
        rule = read(tmp_path, {'size': 32, 'crop_size': 32, **config})
        return Preprocess.from_card(rule)(image)

    np.testing.assert_array_equal(pixels(do_resize=False), array[9:41, 19:51])
    larger = np.asarray(image.resize((56, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels(size=40), larger[4:36, 12:44])
    squashed = np.asarray(image.resize((36, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels(size=[40, 36]), squashed[4:36, 2:34])
    # Of five missing rows, three are above.
    small = Preprocess(32, 'none', crop='down')(array[:27, :32])
    np.testing.assert_array_equal(small[3:30], array[:27, :32])
    assert not small[:3].any() and not small[30:].any()
    # An array of the output's size is resized as well, if what is resized to is larger.
    square = array[:32, :32]
    assert (Preprocess(32, resize_to=40)(square) != square).any()


def test_a_preprocessing_that_a_layout_cannot_hold_is_refused(tmp_path):
    for rule in (Preprocess(32, 'none'), Preprocess(32, resize_to=40)):
        with pytest.raises(ValueError, match=r'open_clip cannot hold .* always resizes to'):
            convert.write(tmp_path / 'x', 'open_clip', *made('clip', preprocess=rule.card))
    rule = Preprocess(32, 'squash', resize_to=(40, 36), rgb='white', crop='down')
    convert.write(tmp_path / 'y', 'huggingface', *made('clip', preprocess=rule.card))
    assert convert.read(tmp_path / 'y')[0]['preprocess'] == rule.card


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'mean': [1, 2]}, r'mean is \(1, 2\); expected three numbers'),
        ({'std': [0, 1, 1]}, r'std is \(0, 1, 1\); expected three numbers'),
        ({'std': [-1, 1, 1]}, 'std is'),
        ({'mean': [1e6, 1, 1]}, 'mean is'),
        ({'mean': [float('nan')] * 3}, 'mean is'),
        ({'mean': 0.5}, 'mean is 0.5; expected three'),
        ({'std': ['1'] * 3}, 'std is'),
        ({'size': 0}, 'size 0, .*expected positive integers'),
        ({'size': '32'}, "size '32'"),
        ({'resize_to': -1}, 'resize_to -1'),
        ({'resize_to': [40, 36]}, r"resize 'shortest' does not take resize_to \(40, 36\)"),
        ({'resize': 'longest', 'resize_to': 40}, "resize 'longest' does not take resize_to 40"),
        ({'resize': 'squash', 'resize_to': [1, 2, 3]}, 'does not take'),
    ],
)
def test_preprocessing_that_is_impossible_is_refused_wherever_it_comes_from(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocess.from_card({'size': 32, **fields})


# open_clip's.


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_cfg': []}, 'model_cfg is a list of 0; expected an object'),
        ({'preprocess_cfg': 5}, 'preprocess_cfg is 5; expected an object'),
        ({'preprocess_cfg': {'mean': 'x'}}, "mean is 'x'; expected a number"),
        ({'preprocess_cfg': {'mean': [1, 2]}}, 'preprocess_cfg.mean has 2 numbers; expected 3'),
        ({'preprocess_cfg': {'std': [0, 1, 1]}}, r'std is \(0, 1, 1\)'),
        ({'preprocess_cfg': {'mode': 'L'}}, "mode is 'L', which is not supported: only RGB"),
        ({'preprocess_cfg': {'interpolation': 'area'}}, "interpolation: there is no 'area'"),
        ({'preprocess_cfg': {'resize_mode': 'crop'}}, "resize_mode: there is no 'crop'"),
        ({'preprocess_cfg': {'resize_mode': 'longest', 'fill_color': 9}}, 'fill_color is 9; with'),
        ({'preprocess_cfg': {'zoom': 2}}, 'the key zoom is unknown'),
        ({'text_cfg': {'tokenizer_kwargs': 'x'}}, "tokenizer_kwargs is 'x'; expected an object"),
        ({'text_cfg': {'tokenizer_kwargs': {'clean': 'strip'}}}, "clean: there is no 'strip'"),
        ({'text_cfg': {'tokenizer_kwargs': {'use_fast': True}}}, 'the key use_fast is unknown'),
        ({'text_cfg': {'tokenizer_kwargs': {'reduction_mask': 'random'}}}, 'reduction_mask is'),
        ({'text_cfg': {'hf_tokenizer_name': 5}}, 'text_cfg is an object'),
        ({'text_cfg': [1]}, 'text_cfg is a list of 1'),
    ],
)
def test_what_open_clips_config_may_not_say(tmp_path, change, message):
    convert.write(tmp_path / 'x', 'open_clip', *made('clip'))
    path = tmp_path / 'x' / open_clip.CONFIG
    config = json.loads(path.read_text())
    inner = config['model_cfg']
    if isinstance(change.get('text_cfg'), dict):
        inner['text_cfg'] |= change['text_cfg']
    elif 'text_cfg' in change:
        inner |= change
    else:
        config |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        convert.read(tmp_path / 'x')
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_keys_of_open_clips_preprocess_cfg(tmp_path):
    from clip_jax.convert import _preprocess_cfg

    def rule(**config):
        return _preprocess_cfg.read(config, 32, what='x')

    assert rule() == _preprocess_cfg.read(None, 32, what='x') == Preprocess(32).card
    assert rule(interpolation='random', size=99, fill_color=9) == Preprocess(32).card
    assert rule(mean=0.5, std=[0.1, 0.2, 0.3])['mean'] == [0.5] * 3
    assert rule(resize_mode='squash', interpolation='bilinear')['resize'] == 'squash'


# Tokenizers.


def tokens(folder: pathlib.Path, config: dict, text: dict = SIGLIP, change=None):
    """The tokens of a text with a small tokenizer.json and a tokenizer_config.json."""
    content = json.loads(words_json())
    if change:
        change(content)
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<pad>', **config}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    card = _tokenizer_files.huggingface(folder, text)
    return tokenizers.from_card(card)(['a cat', 'a a a a a a a a a cat']).tolist()


def test_sides_of_padding_and_truncation_are_read(tmp_path):
    short, long = tokens(tmp_path, {})
    assert (short, long) == ([3, 4, 1, 0, 0, 0, 0, 0, 0], [3] * 8 + [1])
    short, long = tokens(tmp_path, {'padding_side': 'left', 'truncation_side': 'left'})
    assert (short, long) == ([0, 0, 0, 0, 0, 0, 3, 4, 1], [3] * 7 + [4, 1])

    def sides(content):
        content['padding'] = {
            'strategy': {'Fixed': 5},
            'direction': 'Left',
            'pad_to_multiple_of': None,
            'pad_id': 1,
            'pad_type_id': 0,
            'pad_token': '</s>',
        }

    assert tokens(tmp_path, {'pad_token': None}, change=sides)[0] == [1] * 6 + [3, 4, 1]
    right = {'padding_side': 'right', 'pad_token': '<pad>'}
    assert tokens(tmp_path, right, change=sides)[0] == [3, 4, 1, 0, 0, 0, 0, 0, 0]


def test_older_files_of_special_tokens_go_before_unless_all_tokens_are_listed(tmp_path):
    (tmp_path / 'special_tokens_map.json').write_text('{"pad_token": "</s>"}')
    assert tokens(tmp_path, {})[0] == [3, 4, 1, 1, 1, 1, 1, 1, 1]
    listed = {'added_tokens_decoder': {'0': {'content': '<pad>', 'special': True}}}
    assert tokens(tmp_path, listed)[0] == [3, 4, 1, 0, 0, 0, 0, 0, 0]


def test_added_tokens_are_found_in_a_text(tmp_path):
    assert tokens(tmp_path, {'extra_special_tokens': ['a cat']})[0][:2] == [5, 1]
    config = {'added_tokens_decoder': {'5': {'content': 'a cat', 'special': False}}}
    assert tokens(tmp_path, config)[0][:2] == [5, 1]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'pad_token': 5}, 'pad_token is 5; expected a text or an object'),
        ({'pad_token': {'content': 5}}, 'pad_token is an object of 1'),
        ({'padding_side': 'up'}, "padding_side is 'up'; expected 'left' or 'right'"),
        ({'truncation_side': []}, 'truncation_side is a list of 0; expected a text'),
        ({'model_max_length': 8}, 'model_max_length is 8, fewer than the 9 positions'),
        ({'model_max_length': 'x'}, "model_max_length is 'x'; expected a number"),
        ({'model_input_names': ['input_ids', 'attention_mask']}, "has 'attention_mask', but"),
        ({'added_tokens_decoder': {'x': {'content': 'a'}}}, 'invalid literal'),
        ({'added_tokens_decoder': {'1': {}}}, 'content is missing'),
        ({'split_special_tokens': True}, 'split_special_tokens is True, which is not supported'),
        ({'add_bos_token': True}, 'does not add the bos_token, but .* add_bos_token True'),
        ({'add_eos_token': False}, 'adds the eos_token, but .* add_eos_token False'),
        ({'tokenizer_class': 'GemmaTokenizer'}, "needs a model of type BPE, not 'WordLevel'"),
        ({'wat': 1}, 'the key wat is unknown'),
    ],
)
def test_what_tokenizer_configs_may_not_say(tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as error:
        tokens(tmp_path, config)
    assert str(error.value).startswith(str(tmp_path)) and '\n' not in str(error.value)


def pieces_of(folder: pathlib.Path, config: dict, text: str) -> list[int]:
    """The tokens of a text with transformers' SiglipTokenizer."""
    (folder / 'spiece.model').write_bytes(pieces())
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    card = _tokenizer_files.huggingface(folder, SIGLIP)
    return tokenizers.from_card(card)(text)[0].tolist()


def test_settings_of_siglips_sentencepiece_model(tmp_path):
    assert pieces_of(tmp_path, {}, 'a') == [3, 5] + [1] * 7
    assert pieces_of(tmp_path, {'pad_token': '<pad>'}, 'a') == [3, 5, 1] + [0] * 6
    assert pieces_of(tmp_path, {}, 'A') == [3, 5] + [1] * 7
    assert pieces_of(tmp_path, {'do_lower_case': False}, 'A') == [3, 2] + [1] * 7
    # No space is added after a special token, and an end token is not repeated.
    assert pieces_of(tmp_path, {'pad_token': '<pad>'}, 'a <unk> a') == [3, 5, 2, 5, 1, 0, 0, 0, 0]
    assert pieces_of(tmp_path, {'pad_token': '<pad>'}, 'a </s>') == [3, 5, 1] + [0] * 6


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'pad_token': '<nothing>'}, "the token '<nothing>' is not in spiece.model"),
        ({'eos_token': '<pad>'}, "eos_token is '<pad>', but that of spiece.model is '</s>'"),
        ({'sp_model_kwargs': {'alpha': 0.1}}, 'sp_model_kwargs is'),
        ({'legacy': False}, 'legacy is false; only the published rule'),
        ({'added_tokens_decoder': {'1': {'content': '</s>', 'single_word': True}}}, 'single_word'),
    ],
)
def test_what_settings_of_siglips_sentencepiece_model_may_not_say(tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as error:
        pieces_of(tmp_path, config, 'a')
    assert str(error.value).startswith(str(tmp_path)) and '\n' not in str(error.value)
    (tmp_path / 'spiece.model').write_bytes(b'no model')
    with pytest.raises(ValueError, match=r'spiece.model: not a SentencePiece model'):
        _tokenizer_files.big_vision(tmp_path, SIGLIP)


def test_padding_on_the_left_needs_a_text_encoder_that_sees_all_tokens(tmp_path):
    with pytest.raises(ValueError, match='padding_side is left, which needs a mask'):
        tokens(tmp_path, {'padding_side': 'left'}, CLIP)


def test_settings_of_bert_must_be_those_of_its_file(tmp_path):
    def lower(content):
        content['normalizer'] = {
            'type': 'BertNormalizer',
            'clean_text': True,
            'handle_chinese_chars': True,
            'strip_accents': None,
            'lowercase': True,
        }

    config = {'tokenizer_class': 'BertTokenizer', 'tokenize_chinese_chars': True}
    config |= {'strip_accents': None, 'do_basic_tokenize': True, 'never_split': None}
    assert tokens(tmp_path, {**config, 'do_lower_case': True}, change=lower)[0][:3] == [3, 4, 1]
    with pytest.raises(ValueError, match=r'lowercase True, but .* has do_lower_case False'):
        tokens(tmp_path, {**config, 'do_lower_case': False}, change=lower)


def test_a_file_that_adds_no_end_token_is_refused_unless_the_config_asks_for_one(tmp_path):
    def bare(content):
        content['post_processor'] = None

    with pytest.raises(ValueError, match='adds no end token, at which the model pools'):
        tokens(tmp_path, {'eos_token': '</s>'}, change=bare)
    asked = {'eos_token': '</s>', 'add_eos_token': True}
    assert tokens(tmp_path, asked, change=bare)[0][:4] == [3, 4, 1, 0]


def _missing_token(content):
    content['post_processor']['single'][1]['SpecialToken']['id'] = '<x>'


def _outside(content):
    content['post_processor']['special_tokens']['</s>']['ids'] = [100000]


def _no_map(content):
    content['normalizer'] = {'type': 'Precompiled', 'precompiled_charsmap': None}


def _slow_pattern(content):
    pattern = {'Regex': '(a+)+$'}
    content['pre_tokenizer'] = {
        'type': 'Split',
        'pattern': pattern,
        'behavior': 'Isolated',
        'invert': False,
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (_missing_token, 'tokenizer.json: these .* are no tokenizer.json that tokenizers .* can'),
        (_no_map, 'tokenizer.json: these .* are no tokenizer.json that tokenizers .* can read'),
        (_outside, 'a token that its vocabulary lacks: there is no token 100000; ids are below 5'),
        (lambda content: content.update(model=5), 'tokenizer.json: model is 5; expected an obj'),
        (lambda content: content.update(added_tokens=5), 'added_tokens is 5; expected a list'),
        (lambda content: content.update(padding=5), 'padding is 5; expected an object'),
    ],
)
def test_a_tokenizer_json_that_the_library_panics_at_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        tokens(tmp_path, {}, change=change)
    assert '\n' not in str(error.value)


def test_a_panic_while_a_text_is_encoded_is_one_line(tmp_path):
    tokens(tmp_path, {}, change=_slow_pattern)
    made = tokenizers.from_card(_tokenizer_files.huggingface(tmp_path, SIGLIP))
    with pytest.raises(ValueError, match=r"cannot encode 'aaaa.*retry-limit"):
        made('a' * 40 + '!')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'context_length': '9'}, "context_length is '9'; expected an integer"),
        ({'pad_id': 'x'}, "pad_id is 'x'; expected an integer or null"),
        ({'start_ids': 5}, 'start_ids is 5; expected a list'),
        ({'tokenizer_json': {}}, 'tokenizer_json is an object of 0; expected a text'),
        ({'clean': []}, 'clean is a list of 0; expected a text'),
    ],
)
def test_a_card_of_a_tokenizer_with_wrong_types_names_its_file(tmp_path, change, message):
    card = {'name': 'huggingface', 'context_length': 9, 'tokenizer_json': words_json()}
    (tmp_path / _tokenizer_files.CARD).write_text(json.dumps({**card, **change}))
    with pytest.raises(ValueError, match=f'{_tokenizer_files.CARD}: {message}'):
        _tokenizer_files.huggingface(tmp_path, SIGLIP)


@pytest.mark.parametrize('value', [5, 'x', [], {}, None, 2**70, 1e300, -1, True, [5], ['x']])
def test_a_card_with_any_value_in_a_field_is_used_or_refused(value):
    card = {'name': 'huggingface', 'context_length': 9, 'tokenizer_json': words_json()}
    cards = (tokenizers.from_card(card).card, {'name': 'bpe', 'context_length': 9, 'special': []})
    for card in cards:
        for field in card:
            with contextlib.suppress(ValueError):
                tokenizers.from_card({**card, field: value})('a cat')


def test_a_model_without_tokenizer_files_says_which_to_add(tmp_path):
    convert.write(tmp_path / 'x', 'big_vision', *made('siglip'))
    with pytest.raises(ValueError, match=r'add one \(tokenizer.json, or .* spiece.model\).* give'):
        clip_jax.load(tmp_path / 'x').encode_text('a cat')


def test_the_documentation_shows_the_tables():
    page = (ROOT / 'docs/foreign-settings.md').read_text()
    for table in _settings.TABLES.values():
        assert _settings.markdown(table) in page
