"""Settings of image processors and tokenizers have the effect that they have in transformers.

`pip install -e '.[reference]'` installs transformers and open_clip; without them these tests are
skipped.
"""

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest
import tokenizers as library
from PIL import Image
from support.small_models import pieces

from clip_jax import tokenizers
from clip_jax.convert import _image_processor, _settings, _tokenizer_files
from clip_jax.data.preprocess import Preprocess, normalize

pytestmark = pytest.mark.reference
SIZE = 32
CORPUS = [
    'a red circle on a blue square',
    'two green stars and unicode café',
    "don't 12 34 <b> & co!",
]
TEXTS = [
    'a red circle',
    'A Red CIRCLE on\ta  blue square',
    'two green stars ' * 12,
    '',
    "don't 12 34 <b> & co!",
    'café Ünï 猫 😀',
    'end <|endoftext|> here <eos> <extra> x',
    '</s> a <pad>circle <unk>',
    'hello_world, foo-bar!',
    'İstanbul ß',
]


PROCESSORS = {False: 'CLIPImageProcessor', True: 'SiglipImageProcessor'}


def pick(rng: np.random.Generator, *choices):
    return choices[rng.integers(len(choices))]


def some(rng: np.random.Generator, choices: dict[str, tuple], share: float) -> dict:
    """Some of the keys, each with one of its values."""
    return {key: pick(rng, *values) for key, values in choices.items() if rng.random() < share}


# Tables.


def keywords(*classes: type) -> set[str]:
    """Every name that the `__init__` of classes and of their base classes takes or looks up."""
    found: set[str] = set()
    for one in {base for made in classes for base in made.__mro__ if '__init__' in vars(base)}:
        found |= {*inspect.signature(one.__init__).parameters}
        if one.__module__.startswith('transformers'):
            source = inspect.getsource(one.__init__)
            found |= {*re.findall(r'kwargs\.(?:pop|get|setdefault)\(\s*[\'"](\w+)', source)}
            found |= {*re.findall(r'[\'"](\w+)[\'"] (?:not )?in kwargs', source)}
    return {name for name in found - {'self', 'args', 'kwargs'} if name[0] != '_'}


def test_the_table_of_image_processors_has_every_key_of_transformers():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    processors = transformers.CLIPImageProcessor, transformers.SiglipImageProcessor
    names = {
        name
        for one in (*processors, transformers.Siglip2ImageProcessor)
        for name in (*one.valid_kwargs.__annotations__, *one().to_dict())
    }
    assert names | keywords(*processors) <= {*_settings.IMAGE_PROCESSOR}
    assert {'do_pad', 'default_to_square', 'max_num_patches'} <= names


def test_the_table_of_tokenizers_has_every_key_of_transformers():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    names = keywords(
        transformers.CLIPTokenizer,
        transformers.SiglipTokenizer,
        transformers.Siglip2Tokenizer,
        transformers.GemmaTokenizer,
    )
    made = {'tokenizer_object', 'tokenizer', 'post_processor'}  # objects, which no file holds
    assert names - made <= {*_settings.TOKENIZER}
    assert {'padding_side', 'do_lower_case', 'add_eos_token', 'model_max_length'} <= names


def test_the_tables_of_open_clip_have_every_key():
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    fields = {field.name for field in dataclasses.fields(open_clip.transform.PreprocessCfg)}
    assert fields == {*_settings.OPEN_CLIP_PREPROCESS}
    names = keywords(open_clip.SimpleTokenizer, open_clip.tokenizer.HFTokenizer)
    assert names <= {*_settings.OPEN_CLIP_TOKENIZER}


# Pixels.


def image_config(rng: np.random.Generator, siglip: bool) -> dict:
    """Random settings of an image processor; most of them make SIZE x SIZE pixels."""
    both = {'height': SIZE, 'width': SIZE}
    sizes = [both, both, [SIZE, SIZE]] if siglip else [SIZE, {'shortest_edge': 40}, [40, 36], both]
    rare = pick(rng, {'longest_edge': 32}, {'max_height': 32, 'max_width': 32}, 24)
    config = {'size': pick(rng, *sizes) if rng.random() < 0.9 else rare}
    crop = {'crop_size': (SIZE, both, [SIZE, SIZE])}
    config |= {} if siglip else some(rng, crop, 1)
    frequent = {
        'resample': (0, 1, 2, 3, 4, 5),
        'do_rescale': (True, False),
        'rescale_factor': (1 / 255, 1 / 127.5, 1 / 256, 0.01),
        'do_normalize': (True, False),
        'image_mean': (0.5, [0.1, 0.2, 0.3], [0.0, 0.0, 0.0]),
        'image_std': (0.5, [0.1, 0.2, 0.3], [1.0, 1.0, 1.0]),
        'do_convert_rgb': (True, False),
    }
    seldom = {
        'crop_size': (SIZE, 28),
        'do_resize': (True, False),
        'do_center_crop': (True, False),
        'do_pad': (True, False),
        'pad_size': (both, {'height': 40, 'width': 40}),
        'default_to_square': (True, False),
    }
    return config | some(rng, frequent, 0.4) | some(rng, seldom, 0.15)


def images(rng: np.random.Generator) -> list[Image.Image]:
    made = []
    for height, width in ((50, 70), (33, 90), (20, 20), (SIZE, SIZE)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), 'RGBA')
        made += [image, image.convert('RGB'), image.convert('L'), image.convert('RGB').quantize(9)]
    return made


def test_pixels_equal_those_of_transformers_for_random_settings(tmp_path):
    pytest.importorskip('transformers', reason='transformers is not installed')
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    accepted, rng = 0, np.random.default_rng(0)
    for i in range(200):
        siglip = bool(rng.random() < 0.5)
        processor = SiglipImageProcessorPil if siglip else CLIPImageProcessorPil
        config, folder = image_config(rng, siglip), tmp_path / str(i)
        processor(**config).save_pretrained(folder)
        if rng.random() < 0.5:  # as transformers 5 writes it with a tokenizer
            file = folder / 'preprocessor_config.json'
            content = {'image_processor': json.loads(file.read_text())}
            file.write_text('{"resample": 0}')
            (folder / 'processor_config.json').write_text(json.dumps(content))
        theirs = processor.from_pretrained(folder)
        try:
            ours = Preprocess.from_card(
                _image_processor.read(folder, SIZE, usual=PROCESSORS[siglip])
            )
        except ValueError:
            continue
        accepted += 1
        for image in images(rng):
            if config.get('do_convert_rgb') is False and image.mode != 'RGB':
                continue  # the model of transformers fails at these
            there = np.asarray(theirs(image, return_tensors='np')['pixel_values'])[0]
            here = np.asarray(normalize(ours(image), ours.mean, ours.std)).transpose(2, 0, 1)
            scale = max(np.abs(there).max(), 1)
            np.testing.assert_allclose(here / scale, there / scale, atol=1e-6, err_msg=str(config))
    print(f'pixels: {accepted} of 200 settings accepted')
    assert accepted > 100


# Tokens.


def trained(options: dict, trainer: dict, words) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a small BPE."""
    made = library.Tokenizer(library.models.BPE(**options))
    words(made)
    texts = [text.lower() for text in CORPUS] * 30
    made.train_from_iterator(texts, library.trainers.BpeTrainer(**trainer))
    model = json.loads(made.to_str())['model']
    return model['vocab'], [tuple(pair) for pair in model['merges']]


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    def words(made):
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)

    suffix, alphabet = {'end_of_word_suffix': '</w>'}, library.pre_tokenizers.ByteLevel.alphabet()
    vocabulary, merges = trained(
        suffix, {'vocab_size': 700, 'initial_alphabet': alphabet, **suffix}, words
    )
    for token in [f'{c}</w>' for c in alphabet] + ['<|startoftext|>', '<|endoftext|>', '<extra>']:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, merges


def gemma_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    def words(made):
        made.normalizer = library.normalizers.Replace(' ', '▁')

    special = [f'<{name}>' for name in ('pad', 'eos', 'bos', 'unk', 'mask')]
    special += [f'<0x{byte:02X}>' for byte in range(256)]
    options = {'fuse_unk': True, 'byte_fallback': True, 'unk_token': '<unk>'}
    return trained(options, {'vocab_size': 500, 'special_tokens': special}, words)


def saved(rng: np.random.Generator, kind: str, config: dict, folder, vocabularies) -> int:
    """Writes a tokenizer with transformers; returns the size of its vocabulary."""
    import transformers

    vocabulary, merges = vocabularies.get(kind, vocabularies['siglip2'])
    end = {'single': '$A <eos>', 'special_tokens': [('<eos>', 1), ('<bos>', 2)]}
    if kind == 'clip':
        choices = {
            'pad_token': ('!</w>', 'a</w>'),
            'extra_special_tokens': (['<extra>'],),
            'eos_token': ('a</w>', '<|endoftext|>'),
        }
        options = some(rng, choices, 0.3) | config
        made = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, **options)
    elif kind == 'siglip2':
        options = some(rng, {'pad_token': ('<pad>', '<eos>')}, 0.3) | config
        made = transformers.Siglip2Tokenizer(vocab=vocabulary, merges=merges, **options)
        made._tokenizer.post_processor = library.processors.TemplateProcessing(**end)
    elif kind == 'siglip':
        folder.mkdir()
        (folder / 'x.model').write_bytes(pieces())
        choices = {'do_lower_case': (True, False), 'pad_token': ('<pad>', '</s>')}
        options = some(rng, choices, 0.4) | config
        made = transformers.SiglipTokenizer(str(folder / 'x.model'), **options)
        vocabulary = {str(i): i for i in range(60)}
    else:
        model = {'vocab': vocabulary, 'merges': merges, 'fuse_unk': True, 'byte_fallback': True}
        inner = library.Tokenizer(library.models.BPE(**model, unk_token='<unk>'))
        inner.normalizer = library.normalizers.Replace(' ', '▁')
        end['single'] = pick(rng, '$A <eos>', '<bos> $A <eos>')
        inner.post_processor = library.processors.TemplateProcessing(**end)
        if rng.random() < 0.3:
            inner.enable_padding(direction=pick(rng, 'left', 'right'), pad_token='<pad>')
        if rng.random() < 0.3:
            inner.enable_truncation(7, direction=pick(rng, 'left', 'right'))
        tokens = some(rng, {'eos_token': ('<eos>',), 'bos_token': ('<bos>',)}, 0.5)
        options = {'pad_token': pick(rng, '<pad>', '<eos>'), **tokens, **config}
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **options)
    made.save_pretrained(folder)
    return len(vocabulary)


def test_tokens_equal_those_of_transformers_for_random_settings(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    transformers.logging.set_verbosity_error()
    vocabularies = {'clip': clip_vocabulary(), 'siglip2': gemma_vocabulary()}
    accepted, rng = 0, np.random.default_rng(0)
    for i in range(200):
        kind, length = pick(rng, 'clip', 'siglip', 'siglip2', 'fast'), int(pick(rng, 9, 16))
        choices = {
            'padding_side': ('left', 'right'),
            'truncation_side': ('left', 'right'),
            'model_max_length': (length, 2 * length, 10**15),
            'clean_up_tokenization_spaces': (True, False),
            'model_input_names': (['input_ids'],),
        }
        seldom = {'model_max_length': (length - 1,), 'split_special_tokens': (True, False)}
        config = some(rng, choices, 0.35) | some(rng, seldom, 0.1)
        folder = tmp_path / str(i)
        size = saved(rng, kind, config, folder, vocabularies)
        siglip = kind != 'clip'
        model = {'model_type': 'siglip' if siglip else 'clip'}
        (folder / 'config.json').write_text(json.dumps(model))
        text = {'vocab_size': size, 'context_length': length, 'causal': not siglip}
        try:
            text |= {'pool': 'last' if siglip else 'eot'}
            card = _tokenizer_files.huggingface(folder, text)
        except ValueError:
            continue
        accepted += 1
        call = {'padding': 'max_length', 'max_length': length, 'truncation': True}
        theirs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, **call)['input_ids']
        ours = tokenizers.from_card(card)(TEXTS)
        np.testing.assert_array_equal(ours, theirs, err_msg=f'{kind} {config}')
    print(f'tokens: {accepted} of 200 settings accepted')
    assert accepted > 100
