"""Checkpoints of every published layout give the outputs of the reference programs.

The reference outputs are not part of the repository: without them these tests are skipped, and the
other tests in this folder check the same code with small checkpoints.
"""

import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import convert
from clip_jax.convert import _files, _table, openai
from clip_jax.data.patches import Patches
from clip_jax.models import clip

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared/golden'
TOLERANCE = 2e-5

pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason='reference outputs are not on this machine'),
]

# The checkpoint -> the file with the expected outputs; the inputs are in the same folder.
FILES = {
    'openai_vit_jit/model.pt': 'openai_vit_jit/expected.npz',
    'openai_vit_sd/model.pt': 'openai_vit_sd/expected.npz',
    'openai_rn_jit/model.pt': 'openai_rn_jit/expected.npz',
    'openai_rn_jit/model_cuda0.pt': 'openai_rn_jit/expected.npz',
    'openai_rn_sd/model.pt': 'openai_rn_sd/expected.npz',
    'openai_rn_sd/model_legacy_fp16.pt': 'openai_rn_jit/expected.npz',
    'openclip_vit': 'openclip_vit/expected.npz',
    'openclip_vit_quickgelu': 'openclip_vit_quickgelu/expected.npz',
    'openclip_vit_quickgelu/open_clip_pytorch_model.bin': 'openclip_vit_quickgelu/expected.npz',
    'openclip_vit_quickgelu/epoch_3.pt': 'openclip_vit_quickgelu/expected.npz',
    'openclip_siglip': 'openclip_siglip/expected.npz',
    'openclip_siglip2': 'openclip_siglip2/expected.npz',
    'openclip_clipa': 'openclip_clipa/expected.npz',
    'openclip_coca': 'openclip_coca/expected.npz',
    'hf_clip': 'hf_clip/expected.npz',
    'hf_clip/model_fp16_position_ids.safetensors': 'hf_clip/expected_fp16.npz',
    'hf_clip/pytorch_model_fp16.bin': 'hf_clip/expected_fp16.npz',
    'hf_siglip': 'hf_siglip/expected.npz',
    'hf_siglip2': 'hf_siglip2/expected.npz',
    'hf_siglip2_naflex': 'hf_siglip2_naflex/expected.npz',
    'bigvision_naflex_npz/siglip2_naflex.npz': 'bigvision_naflex_npz/expected.npz',
    'bigvision_siglip_npz/siglip1_layout.npz': 'bigvision_siglip_npz/expected.npz',
    'bigvision_siglip_npz/siglip2_layout.npz': 'bigvision_siglip_npz/expected.npz',
    'bigvision_siglip_npz/bare_bf16_void.npz': 'bigvision_siglip_npz/expected_bf16.npz',
}


def inputs(folder: pathlib.Path) -> tuple[np.ndarray | Patches, np.ndarray]:
    """Images NHWC, or patches, and tokens of a folder."""
    with np.load(folder / 'inputs.npz') as file:
        tokens = file['tokens'].astype(np.int32)
        if 'spatial_shapes' in file:
            pixels = file['patches' if 'patches' in file else 'pixel_values']
            pixels = pixels.reshape(*pixels.shape[:2], 16, 16, 3)
            return Patches(pixels, file['spatial_shapes'].astype(np.int32)), tokens
        images = file['image']
    return images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1), tokens


@functools.partial(jax.jit, static_argnums=0)
def outputs(
    model: clip.CLIP, variables: dict, images: jax.Array, tokens: jax.Array
) -> tuple[dict, dict]:
    """What folders have expected outputs of, and the output of every module."""
    (image, text, scale, bias), kept = model.apply(
        variables, images, tokens, capture_intermediates=True, mutable=['intermediates']
    )
    found = {
        'image_embeds': model.apply(variables, images, method='encode_image'),
        'text_embeds': model.apply(variables, tokens, method='encode_text'),
        'logits_per_image': scale * image @ text.T + (0 if bias is None else bias),
        'logit_scale': scale,
    }
    modules = _table.flat(kept['intermediates'])
    return found, {k.removesuffix('/__call__'): v[0] for k, v in modules.items()}


def compare(path: pathlib.Path, expected_path: pathlib.Path) -> dict:
    """Reads a checkpoint and compares all outputs that are expected of it; returns its card."""
    card, variables = convert.read(path)
    model, expected = clip.from_card(card['model']), dict(np.load(expected_path))
    images, tokens = inputs(expected_path.parent)
    found, _ = outputs(model, variables, images, tokens)
    assert {'image_embeds', 'text_embeds'} & expected.keys()
    for name in found.keys() & expected.keys():
        np.testing.assert_allclose(
            found[name], expected[name].reshape(found[name].shape), atol=TOLERANCE, err_msg=name
        )
    return card


@pytest.mark.parametrize('path', FILES)
def test_outputs(path):
    compare(GOLDEN / path, GOLDEN / FILES[path])


@pytest.mark.parametrize(
    ('config', 'folder', 'expected'),
    [
        ('config_sparse.json', 'hf_clip', 'expected.npz'),
        ('config_eos2.json', 'hf_clip', 'expected_eos2.npz'),
        ('config_sparse.json', 'hf_siglip', 'expected.npz'),
        ('config_sparse.json', 'hf_siglip2', 'expected.npz'),
        ('config_sparse.json', 'hf_siglip2_naflex', 'expected.npz'),
    ],
)
def test_outputs_with_other_configs(tmp_path, config, folder, expected):
    shutil.copy(GOLDEN / folder / config, tmp_path / 'config.json')
    shutil.copy(GOLDEN / folder / 'model.safetensors', tmp_path)
    card = compare(tmp_path, GOLDEN / folder / expected)
    same = convert.read(GOLDEN / folder)[0]['model'] == card['model']
    assert same == (config == 'config_sparse.json')


# Names of a layout's modules -> ours; what they return is compared.
MODULES = {
    r'(?:visual\.transformer|vision_model\.encoder)\.(?:resblocks|layers)\.(\d+)': (
        r'image/transformer/block_\1'
    ),
    r'(?:text\.)?transformer\.resblocks\.(\d+)': r'text/transformer/block_\1',
    r'text_model\.encoder\.layers\.(\d+)': r'text/transformer/block_\1',
    r'visual\.trunk\.blocks\.(\d+)': r'image/transformer/block_\1',
    r'img/Transformer/encoderblock_(\d+)': r'image/transformer/block_\1',
    r'txt/Encoder_0/encoderblock_(\d+)': r'text/transformer/block_\1',
    r'(?:visual\.ln_pre|vision_model\.pre_layrnorm)': 'image/pre_norm',
    r'visual\.trunk\.norm': 'image/post_norm',
    r'visual\.stem': 'image/stem',
    r'visual\.layer(\d)\.(\d)': r'image/stage_\1/block_\2',
}
# Outputs of towers, or of norms that we compute for one token only.
POOLED = {'visual.ln_post': 'image/post_norm', 'visual.attnpool': 'image_projection'}


@pytest.mark.parametrize('path', [p for p, e in FILES.items() if e.endswith('/expected.npz')])
def test_every_block(path):
    expected = dict(np.load(GOLDEN / FILES[path]))
    blocks = {n.removeprefix('block/'): x for n, x in expected.items() if n.startswith('block/')}
    card, variables = convert.read(GOLDEN / path)
    images, tokens = inputs((GOLDEN / FILES[path]).parent)
    model = clip.from_card(card['model'])
    _, ours = outputs(model, variables, images, tokens)
    compared = 0
    for name, there in blocks.items():
        if name == 'ln_final':  # ours is computed for the pooled token only
            here, there = ours['text/post_norm'], there[np.arange(4), tokens.argmax(axis=1)]
        elif name in POOLED:
            here = ours[POOLED[name]]
            here = here[:, 0] if here.ndim > there.ndim else here
        else:
            pattern = next(p for p in MODULES if re.fullmatch(p, name))
            here = ours[re.sub(pattern, MODULES[pattern], name)]
        if isinstance(images, Patches) and name.startswith('vision_model'):
            shown = np.arange(there.shape[1]) < images.grid.prod(axis=1)[:, None]
            here, there = here[shown], there[shown]
        if there.ndim == 4:
            there = there.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(here, there, atol=TOLERANCE, err_msg=name)
        compared += 1
    if not any(x in path for x in ('jit', 'fp16', 'naflex.npz')):
        assert compared >= 3


def test_bfloat16_weights_are_read_to_the_bit():
    """Rounded weights give other outputs, so the tensors themselves are compared."""
    folder = GOLDEN / 'openclip_vit_quickgelu'
    exact = _files.arrays(folder / 'open_clip_model.safetensors')
    rounded = _files.arrays(folder / 'bf16.bin')
    assert exact.keys() == rounded.keys()
    for name, array in rounded.items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array.read(), exact[name].read().astype(jnp.bfloat16))
    _, variables = convert.read(folder / 'bf16.bin')
    kernel = variables['params']['image_projection']['kernel']
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, rounded['visual.proj'].read().astype(np.float32))


@pytest.mark.parametrize('path', ['openai_vit_sd/model.pt', 'openclip_vit', 'hf_clip', 'hf_siglip'])
def test_key_biases_are_where_they_belong(path):
    """No output can show them: they add the same to all logits of a query."""
    weights = GOLDEN / path
    if weights.is_dir():
        weights = next(p for p in weights.iterdir() if p.name.endswith('model.safetensors'))
    theirs = _files.arrays(weights)
    _, variables = convert.read(GOLDEN / path)
    checked = 0
    for tower, start in (('image', 'vis'), ('text', '')):
        blocks = variables['params'][tower]['transformer']
        for i in range(len(blocks)):
            bias = blocks[f'block_{i}']['attention']['qkv']['bias'][1].ravel()
            for name, array in theirs.items():
                if bool(re.match('vis', name)) != bool(start):
                    continue
                if re.search(rf'resblocks\.{i}\.attn\.in_proj_bias', name):
                    np.testing.assert_array_equal(bias, np.split(array.read(), 3)[1])
                    checked += 1
                elif re.search(rf'layers\.{i}\.self_attn\.k_proj\.bias', name):
                    np.testing.assert_array_equal(bias, array.read())
                    checked += 1
    assert checked >= 4
    assert np.abs(bias).max() > 0


@pytest.mark.parametrize('path', FILES)
def test_all_are_told_apart_by_content(path, tmp_path):
    """A file by another name is still what it is."""
    layout = convert.layout_of(GOLDEN / path)
    prefixes = {'openai': 'openai', 'openclip': 'open_clip', 'hf': 'huggingface'}
    assert layout == prefixes.get(path.split('_')[0], 'big_vision')
    if layout in ('openai', 'big_vision'):
        shutil.copy(GOLDEN / path, tmp_path / 'x.download')
        assert convert.layout_of(tmp_path / 'x.download') == layout


@pytest.mark.parametrize(
    'path', [p for p in FILES if not p.startswith(('openai', 'openclip_siglip'))]
)
def test_read_write_read_is_the_identity(path, tmp_path):
    layout = convert.layout_of(GOLDEN / path)
    card, variables = convert.read(GOLDEN / path)
    convert.write(tmp_path / 'new', layout, card, variables)
    again, back = convert.read(tmp_path / 'new')
    assert again['model'] == card['model'] and again['preprocess'] == card['preprocess']
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize('path', ['openclip_siglip', 'openclip_siglip2', 'openai_rn_sd/model.pt'])
def test_tables_of_layouts_that_cannot_be_written_are_the_identity_too(path):
    """timm has no model of these sizes, and OpenAI's layout is not written."""
    from clip_jax.convert import open_clip

    card, variables = convert.read(GOLDEN / path)
    is_timm = path.startswith('openclip')
    weights = GOLDEN / path / open_clip.SAFETENSORS if is_timm else GOLDEN / path
    rows = open_clip.rows(card['model'], 'text.' if is_timm else '')
    written, theirs = _table.write(rows, variables), _files.arrays(weights)
    for name, array in written.items():
        np.testing.assert_array_equal(array, theirs[name].read().reshape(array.shape))
    left = theirs.keys() - written.keys()
    assert all(name.endswith('num_batches_tracked') for name in left)


def test_openai_weights_in_other_layouts_give_the_same_outputs(tmp_path):
    path = GOLDEN / 'openai_vit_sd/model.pt'
    card, variables = convert.read(path)
    for layout in ('open_clip', 'huggingface'):
        convert.write(tmp_path / layout, layout, card, variables)
        compare(tmp_path / layout, GOLDEN / 'openai_vit_sd/expected.npz')
    with pytest.raises(ValueError, match=r'big_vision cannot hold this model: it has no image/'):
        convert.write(tmp_path / 'x', 'big_vision', card, variables)
    assert {p.name for p in tmp_path.iterdir()} == {'open_clip', 'huggingface'}
    with pytest.raises(ValueError, match=r"there is no 'openai'.* There are: big_vision"):
        convert.write(tmp_path / 'x', 'openai', card, variables)


def test_loaded_models_embed(tmp_path):
    loaded = clip_jax.load(GOLDEN / 'hf_clip')
    _, tokens = inputs(GOLDEN / 'hf_clip')
    expected = np.load(GOLDEN / 'hf_clip/expected.npz')['text_embeds']
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.encode_text(tokens), expected, atol=TOLERANCE)
    assert loaded.preprocess.size == 64
    with pytest.raises(ValueError, match='no tokenizer'):
        loaded.encode_text('a cat')


def test_heads_of_openai_are_read_from_widths():
    card, _ = openai.read(GOLDEN / 'openai_rn_sd/model.pt')
    meta = json.loads((GOLDEN / 'openai_rn_sd/meta.json').read_text())
    assert card['model']['image']['depths'] == [1, 2, 2, 1], meta['hyperparameters']
    assert card['model']['image']['heads'] == 4
