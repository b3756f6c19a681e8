"""Published names: each that claims to load does so from a hub, and near misses are suggested."""

import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
from support import orbax_trees
from support.hub import hub  # noqa: F401
from support.layouts import equal, exported
from support.small_models import made

from clip_jax import convert, pretrained
from clip_jax.convert import _hf_text, _timm_convnext, _timm_eva, _timm_mobileclip, _timm_siglip
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip, presets
from clip_jax.places import names, resolve

LOADS = [row for row in names.published() if row.loads]
# Of open_clip without a preset: sizes of a preset's kind.
LIKE = {
    'ViT-SO400M-16-SigLIP-i18n-256': 'ViT-SO400M-14-SigLIP',
    'ViT-SO400M-14-SigLIP-378': 'ViT-SO400M-14-SigLIP-384',
    'ViT-H-14-worldwide': 'ViT-H-14',
    'ViT-H-14-worldwide-378': 'ViT-H-14-378',
    'ViT-bigG-14-worldwide': 'ViT-bigG-14',
    'ViT-bigG-14-worldwide-378': 'ViT-bigG-14',
    'ViT-H-14-worldwide-quickgelu': 'ViT-H-14-quickgelu',
}
WIDTHS = {768: 64, 1024: 128, 1152: 192, 1536: 256}  # of SigLIP's image encoders
SIZES = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}


def shrunk(model: str) -> dict:
    """The architecture of an open_clip model, with the smallest sizes."""
    card = presets.architecture(model)
    image, text = card['image'], card['text']
    text |= {**SIZES, 'vocab_size': 60}
    text |= {'eot_id': 59} if text.get('eot_id') else {}
    if image['name'] == 'resnet':
        image |= {'width': 4, 'depths': [1, 1, 1, 1], 'heads': 2, 'image_size': 64}
    elif image['name'] == 'convnext':
        image |= {'widths': [8, 8, 8, 16], 'depths': [1, 1, 1, 1], 'image_size': 64}
    elif image['name'] == 'rope_vit':
        image |= {**SIZES, 'patch_size': 8, 'image_size': 16}
        image |= {'rope_grid': 2} if image.get('pool') == 'map' else {}
        image |= {'pool_heads': 8} if image.get('pool') == 'map' else {}
    elif image.get('pool') == 'queries':
        image |= {**SIZES, 'patch_size': 8, 'image_size': 16}
        image |= {'pool_queries': 4, 'pool_heads': 2, 'pool_width': 32}
        card['decoder'] |= {**SIZES, 'mlp_dim': 128, 'vocab_size': 60}
    elif image.get('pool') == 'map':  # whose heads open_clip's file does not say
        width = WIDTHS[image['width']]
        heads = width // 64 if image['width'] in (768, 1024) else 16
        activation = _timm_siglip.by_name('giantopt' if width == 256 else '', width)['activation']
        image |= {'width': width, 'heads': heads, 'depth': 1, 'mlp_dim': 80}
        image |= {'activation': activation, 'image_size': 2 * image['patch_size']}
        return {**card, 'embed_dim': width}
    else:
        image |= {**SIZES, 'patch_size': 8, 'image_size': 16}
        image |= {'mlp_dim': 128} if model.startswith('MobileCLIP') else {}
    return {**card, 'embed_dim': 32}


@pytest.fixture
def small_trunks(monkeypatch):
    """Models of timm and transformers are known by their sizes: they become small too."""
    for name, (_, _, norm_eps) in [*_timm_convnext.TRUNKS.items()]:
        small = ((8, 8, 8, 16), (1, 1, 1, 1), norm_eps)
        monkeypatch.setitem(_timm_convnext.TRUNKS, name, small)
    for name in _timm_eva.TRUNKS:
        monkeypatch.setitem(_timm_eva.TRUNKS, name, (16, 8, 32, 1, 2, 64))
    for name in [*_timm_mobileclip.TRUNKS]:
        monkeypatch.setitem(_timm_mobileclip.TRUNKS, name, (16, 8, 32, 1, 2))
    for name, (_, patch_size, width, _) in [*_timm_siglip.TRUNKS.items()]:
        small = (2 * patch_size, patch_size, WIDTHS[width], 1)
        monkeypatch.setitem(_timm_siglip.TRUNKS, name, small)
    for name, known in [*_hf_text.KNOWN.items()]:
        monkeypatch.setitem(_hf_text.KNOWN, name, {**known, **SIZES, 'vocab_size': 60})


@functools.cache
def files(architecture: str) -> tuple[dict[str, bytes], dict]:
    """An open_clip folder of a model, whose card is given as JSON, and its variables."""
    built = clip.from_card(json.loads(architecture))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0.5, 0.2, x.shape).astype(np.float32), clip.shapes(built)
    )
    preprocess = Preprocess(built.image.image_size, resize='shortest').card
    card = {'model': clip.to_card(built), 'preprocess': preprocess, 'tokenizer': None}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / 'x'
        convert.write(folder, 'open_clip', card, variables)
        return {file.name: file.read_bytes() for file in folder.iterdir()}, variables


def of_row(row: names.Published) -> tuple[dict[str, bytes], dict]:
    """The files of a small model of a row's kind, in its layout, and its variables."""
    if 'openvision' in row.name:
        return orbax_trees.openvision_files(), orbax_trees.openvision_variables()
    if row.name == row.repository:
        kinds = ('naflex', 'siglip', 'metaclip_2', 'chinese_clip', 'clip', 'tipsv2')
        kind = next(x for x in kinds if x in row.name.replace('-', '_'))
        return exported('huggingface', kind), made(kind)[1]
    model = row.name.partition('/')[0]
    return files(json.dumps(shrunk(LIKE.get(model, model))))


# One of each size by default.
SOME = [*{row.name.partition('/')[0]: row for row in reversed(LOADS)}.values()]


@pytest.mark.parametrize(
    'rows', [SOME[::8], pytest.param(LOADS, marks=pytest.mark.slow)], ids=['some', 'all']
)
def test_each_name_loads_from_the_hub(rows, hub, small_trunks):  # noqa: F811
    assert len(LOADS) > 170
    for row in rows:
        content, variables = of_row(row)
        hub.add(row.repository, content)
        assert equal(pretrained.read(row.name)[1], variables), row.name


def test_other_spellings_are_the_same_checkpoint():
    for spelling, name in (
        ('openai/ViT-L-14', 'ViT-L-14/openai'),
        ('vit-b-32/LAION2B_s34b_b79k', 'ViT-B-32/laion2b_s34b_b79k'),
        ('siglip2-base-patch16-256', 'google/siglip2-base-patch16-256'),
        ('laion/CLIP-ViT-B-32-laion2B-s34B-b79K', 'ViT-B-32/laion2b_s34b_b79k'),
    ):
        row = names.find(spelling)
        assert row is not None and row.name == name


def test_what_is_missing_is_said_and_near_names_are_suggested(hub):  # noqa: F811
    with pytest.raises(ValueError, match=r'ViTamin-L/datacomp1b: not supported: .* ViTamin im'):
        pretrained.read('ViTamin-L/datacomp1b')
    with pytest.raises(ValueError, match='Did you mean ViT-B-32/laion2b_s34b_b79k'):
        pretrained.read('ViT-B-32/laion2b_s34b_b79')
    assert not hub.asked


def test_a_local_folder_comes_before_a_name(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'openai' / 'clip-vit-base-patch32'
    folder.mkdir(parents=True)
    for name, content in exported('huggingface', 'eot').items():
        (folder / name).write_bytes(content)
    assert resolve.found('openai/clip-vit-base-patch32') is None
    assert equal(pretrained.read('openai/clip-vit-base-patch32')[1], made('eot')[1])
    assert not hub.asked


def test_names_are_unique_and_every_row_is_complete():
    rows = names.published()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.repository.count('/') >= 1
        assert row.loads or row.missing, row
        assert row.imagenet is None or 0 < row.imagenet < 100


@pytest.mark.reference
def test_every_pair_of_open_clip_is_known():
    import open_clip

    known = {row.name for row in names.published()}
    assert not {f'{model}/{tag}' for model, tag in open_clip.list_pretrained()} - known
