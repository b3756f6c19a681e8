"""Checkpoints of transformers, most with one tower: the small models in fixtures/, which
tests/reference/hf_towers.py made, give what transformers computed, block by block.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from reference import hf_towers
from safetensors.numpy import load_file, save_file
from support.layouts import edit, equal

import clip_jax
from clip_jax import convert
from clip_jax.convert import _hf_tips, huggingface
from clip_jax.models import clip
from clip_jax.step import state

TOLERANCE = 2e-5
WEIGHTS = 'model.safetensors'
IMAGE, TEXT = 'CLIPVisionModel', 'CLIPTextModelWithProjection'


def compare(folder) -> dict:
    """Asserts that embeddings and blocks are those of transformers; returns the card."""
    card, variables = convert.read(folder)
    model = clip.from_card(card['model'])
    expected = dict(np.load(folder / 'expected.npz'))
    if 'scale' in expected:
        scale = np.exp(variables['params']['logit_scale'])
        np.testing.assert_allclose(scale, expected.pop('scale'), rtol=1e-6)
    inputs = dict(zip(('image', 'text'), hf_towers.inputs(hf_towers.IMAGE_SIZE), strict=True))
    for tower, encoder in model.towers.items():
        embedding, found = jax.jit(
            functools.partial(
                model.apply,
                method=f'encode_{tower}',
                capture_intermediates=lambda module, _: (module.name or '').startswith('block_'),
                mutable=['intermediates'],
            )
        )(variables, inputs[tower])
        blocks = found['intermediates'][tower]['transformer']
        outputs = {
            f'{tower}_{i}': blocks[f'block_{i}']['__call__'][0] for i in range(encoder.depth)
        }
        for name, x in {tower: embedding, **outputs}.items():
            there = expected.pop(name)
            real = np.ones(x.shape[:2], bool)
            if tower == 'text' and x.ndim == 3 and card['model']['text']['name'] != 'transformer':
                real = inputs['text'] != 0  # what is computed of padding does not count
            if x.ndim == 2:
                real = slice(None)
            limit = TOLERANCE * np.abs(there).max()
            np.testing.assert_allclose(x[real], there[real], atol=limit)
    assert not expected
    return card


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_outputs_of_every_block_are_those_of_transformers(name):
    compare(hf_towers.folder_of(name))


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_it_is_written_back_as_it_was(name, tmp_path):
    card, variables = convert.read(hf_towers.folder_of(name))
    convert.write(tmp_path / 'x', 'huggingface', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again == card and equal(back, variables)
    before, after = (
        json.loads((x / 'config.json').read_text())
        for x in (hf_towers.folder_of(name), tmp_path / 'x')
    )
    same = ('model_type', 'architectures', 'hidden_size', 'num_hidden_layers')
    assert all(before.get(key) == after.get(key) for key in same)


def test_an_image_tower_embeds_images_and_says_that_the_text_tower_is_missing():
    model = clip_jax.load(hf_towers.FIXTURES / IMAGE / WEIGHTS)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    embedding = model.encode_image(image)
    features = model.encode_image(image, features='pre_projection')
    assert embedding.shape == (1, 16)
    np.testing.assert_allclose(embedding, features / np.linalg.norm(features), rtol=1e-5)
    for call in (lambda: model.encode_text(['a']), lambda: model.classify(image, ['a', 'b'])):
        with pytest.raises(ValueError, match='has no text encoder, only the other one; load'):
            call()


def test_a_text_tower_embeds_tokens_and_says_that_the_image_tower_is_missing():
    model = clip_jax.load(hf_towers.FIXTURES / TEXT)
    assert model.encode_text(hf_towers.inputs(8)[1]).shape == (2, 6)
    for call in (
        lambda: model.encode_image([]),
        lambda: model.with_preprocess(max_pixels=1),
        lambda: clip_jax.load(hf_towers.FIXTURES / TEXT, image_size=16),
    ):
        with pytest.raises(ValueError, match='has no image encoder, only the other one; load'):
            call()


@pytest.mark.parametrize('layout', ['open_clip', 'big_vision'])
def test_other_layouts_cannot_hold_it(layout, tmp_path):
    with pytest.raises(ValueError, match='has one tower; expected huggingface'):
        convert.write(tmp_path / 'x', layout, *convert.read(hf_towers.FIXTURES / IMAGE))


@pytest.mark.parametrize(
    ('kind', 'line'),
    [
        ('clipseg', 'CLIPSeg segments images and is not supported'),
        ('clap', 'CLAP embeds audio, which is not supported'),
        ('clip_vision_modal', "Did you mean 'clip_vision_model'"),
        ('clip_text_model', 'vocab_size is 49,408, but the weights are only'),
    ],
)
def test_other_kinds_are_refused_by_name(kind, line, tmp_path):
    folder = shutil.copytree(hf_towers.FIXTURES / IMAGE, tmp_path / 'x')
    edit(folder / 'config.json', lambda x: x.update(model_type=kind))
    with pytest.raises(ValueError, match=line):
        convert.read(folder)


@pytest.mark.parametrize('name', hf_towers.STORED)
def test_weights_that_lack_some_are_one_line(name, tmp_path):
    folder = shutil.copytree(hf_towers.folder_of(name), tmp_path / 'x')
    weights = load_file(folder / WEIGHTS)
    needed = [n for n in weights if n.rpartition('.')[2] not in hf_towers.OPTIONAL]
    for missing in needed[:: len(needed) // 2]:
        save_file({n: x for n, x in weights.items() if n != missing}, folder / WEIGHTS)
        with pytest.raises(ValueError, match='1 missing: '):
            convert.read(folder)


@pytest.mark.reference
@pytest.mark.parametrize('name', hf_towers.MODELS)
def test_transformers_computes_the_same_today_and_loads_what_we_write(name, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    hf_towers.write(tmp_path / 'made', name)
    card = compare(tmp_path / 'made')
    convert.write(tmp_path / 'x', 'huggingface', card, convert.read(tmp_path / 'made')[1])
    model, about = getattr(transformers, name.partition(':')[0]).from_pretrained(
        tmp_path / 'x', output_loading_info=True
    )
    missing = {x.rpartition('.')[2] for x in about['missing_keys']}
    assert not missing - {'mask_token'} and not about['unexpected_keys']
    there = hf_towers.outputs(model.eval())
    expected = np.load(tmp_path / 'made' / 'expected.npz')
    for key in {'image', 'text', 'scale'} & {*expected}:
        x = expected[key]
        np.testing.assert_allclose(there[key], x, atol=TOLERANCE * np.abs(x).max())


@pytest.mark.reference
@pytest.mark.parametrize('lower', [True, False])
def test_tokens_of_a_vocabulary_of_bert_are_those_of_transformers(lower, tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    folder = chinese(tmp_path, lower)
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    made = theirs(TEXTS, padding='max_length', max_length=5, truncation=True)['input_ids']
    np.testing.assert_array_equal(clip_jax.load(folder).tokenizer(TEXTS), made)


WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '杰', '尼', '龟', 'a', '##b', 'A', '!', 'e']
TEXTS = ['杰尼龟', 'ab A!', '', ' é 龟龟 龟 a a', 'xyz [MASK]']


def chinese(tmp_path, lower: bool):
    """A copy of the small Chinese-CLIP with a vocabulary."""
    folder = shutil.copytree(hf_towers.FIXTURES / 'ChineseCLIPModel', tmp_path / 'x')
    (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    about = {'tokenizer_class': 'BertTokenizer', 'do_lower_case': lower}
    (folder / 'tokenizer_config.json').write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ('lower', 'tokens'),
    [
        (
            True,
            [[2, 5, 6, 7, 3], [2, 8, 9, 8, 3], [2, 3, 0, 0, 0], [2, 12, 7, 7, 3], [2, 1, 4, 3, 0]],
        ),
        (
            False,
            [[2, 5, 6, 7, 3], [2, 8, 9, 10, 3], [2, 3, 0, 0, 0], [2, 1, 7, 7, 3], [2, 1, 4, 3, 0]],
        ),
    ],
)
def test_chinese_clip_reads_its_vocabulary(lower, tokens, tmp_path):
    model = clip_jax.load(chinese(tmp_path, lower))
    np.testing.assert_array_equal(model.tokenizer(TEXTS), tokens)
    card = {**model.card, 'tokenizer': model.tokenizer.card}
    convert.write(tmp_path / 'y', 'huggingface', card, model.variables)
    assert convert.read(tmp_path / 'y')[0] == card


def test_a_vocabulary_without_special_tokens_is_one_line(tmp_path):
    folder = chinese(tmp_path, True)
    (folder / 'vocab.txt').write_text('a\n')
    with pytest.raises(ValueError, match=r'vocab.txt: lacks \[UNK\].*expected the vocabulary of'):
        convert.read(folder)


def sizes(width: int, depth: int, heads: int, mlp_dim: int, **more) -> dict:
    return {
        'hidden_size': width,
        'num_hidden_layers': depth,
        'num_attention_heads': heads,
        'intermediate_size': mlp_dim,
        **more,
    }


def chinese_clip(image: dict, text: dict, dim: int) -> dict:
    text = {**text, 'vocab_size': 21128}
    parts = {'vision_config': image, 'text_config': text}
    return {'model_type': 'chinese_clip', 'projection_dim': dim, **parts}


def tips(name: str, width: int, mlp_dim: int, depth: int, heads: int) -> dict:
    """The config of TIPS's own program."""
    return {
        'model_type': 'tipsv2',
        'vision_fn': name,
        'embed_dim': width,
        'ffn_layer': 'swiglu' if name == 'vit_giant2' else 'mlp',
        'img_size': 448,
        'patch_size': 14,
        'num_register_tokens': 1,
        'init_values': 1.0,
        'text_hidden_size': width,
        'text_mlp_dim': mlp_dim,
        'text_num_layers': depth,
        'text_num_heads': heads,
        'vocab_size': 32000,
        'max_len': 64,
        'temperature': 0.00478,
    }


BASE, LARGE = sizes(768, 12, 12, 3072), sizes(1024, 24, 16, 4096)
DINOV2 = {'model_type': 'dinov2', 'image_size': 518, 'patch_size': 14}
DINOV3 = {'model_type': 'dinov3_vit', 'num_register_tokens': 4}


# Counted by transformers 5.24 in its own models of these sizes; DINO's and TIPS's also have a mask
# token.
@pytest.mark.parametrize(
    ('config', 'count'),
    [
        (chinese_clip({**BASE, 'patch_size': 16}, BASE, 512), 188_262_913),
        (chinese_clip({**LARGE, 'patch_size': 14}, BASE, 768), 406_233_089),
        (chinese_clip({**LARGE, 'patch_size': 14, 'image_size': 336}, BASE, 768), 406_560_769),
        (chinese_clip(sizes(1280, 32, 16, 5120, patch_size=14), LARGE, 1024), 957_598_209),
        ({**DINOV2, **sizes(384, 12, 6, 0)}, 22_056_576 - 384),
        ({**DINOV2, **sizes(768, 12, 12, 0)}, 86_580_480 - 768),
        ({**DINOV2, **sizes(1024, 24, 16, 0)}, 304_368_640 - 1024),
        ({**DINOV2, **sizes(1536, 40, 24, 0), 'use_swiglu_ffn': True}, 1_136_480_768 - 1536),
        ({**DINOV3, **sizes(384, 12, 6, 1536)}, 21_596_544 - 384),
        ({**DINOV3, **sizes(768, 12, 12, 3072)}, 85_660_416 - 768),
        ({**DINOV3, **sizes(1024, 24, 16, 4096)}, 303_129_600 - 1024),
        ({**DINOV3, **sizes(1280, 32, 20, 5120)}, 630_713_600 - 1280),
        (tips('vit_base', 768, 3072, 12, 12), 195_948_289 - 768),
        ({'model_type': 'tipsv2'}, 195_948_289 - 768),
        (tips('vit_large', 1024, 4096, 12, 16), 487_941_121 - 1024),
        (tips('vit_so400m', 1152, 4304, 27, 16), 861_726_817 - 1152),
        (tips('vit_giant2', 1536, 6144, 12, 24), 1_525_085_697 - 1536),
    ],
)
def test_numbers_of_parameters_of_the_published_models(config, count):
    config = {k: v for k, v in config.items() if (k, v) != ('intermediate_size', 0)}
    fields = huggingface.architecture(config, (), what='published')
    if config['model_type'] == 'tipsv2':
        again = _hf_tips.config_of(clip.to_card(clip.from_card(fields)))
        written = huggingface.architecture(again, (), what='written')
        assert written.pop('init_logit_scale') == pytest.approx(fields['init_logit_scale'])
        assert written.items() <= fields.items()
    assert state.count_parameters(clip.shapes(clip.from_card(fields))['params']) == count
