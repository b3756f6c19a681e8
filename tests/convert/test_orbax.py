"""Orbax checkpoints of big_vision and OpenVision: the same model as in other layouts."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from support import orbax_trees
from support.layouts import equal
from support.small_models import made, pieces, words_json

import clip_jax
from clip_jax import convert, pretrained
from clip_jax.convert import _openvision
from clip_jax.places import names

CONFIG = 'open_clip_config.json'
NAME = 'openvision-vit-tiny-patch16-160'
STEP = 'jax_orbax_weight/checkpoint.npz/1200/default'


@pytest.fixture
def published(tmp_path):
    """A repository of OpenVision: open_clip's files, and those of Orbax."""
    root = tmp_path / 'openvision'
    root.mkdir()
    for name, content in orbax_trees.openvision_files().items():
        (root / name).write_bytes(content)
    orbax_trees.save(root / STEP, orbax_trees.state(orbax_trees.openvision()))
    return root


def embeddings(path):
    clip = clip_jax.load(path)
    size = clip.preprocess.size
    images = np.random.default_rng(2).integers(0, 255, (2, size, size, 3), np.uint8)
    tokens = np.arange(18, dtype=np.int32).reshape(2, 9)
    return clip.encode_image(images), clip.encode_text(tokens)


@pytest.mark.parametrize('path', ['jax_orbax_weight', pytest.param(STEP, marks=pytest.mark.slow)])
def test_openvision_is_the_model_of_its_open_clip_files(path, published):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        embeddings(published / path),
        embeddings(published),
    )
    ours, theirs = (pretrained.read(published / x)[0] for x in (path, ''))
    assert ours['preprocess'] == theirs['preprocess']
    positions = ours['model']['image'].pop('positions')
    assert (positions, theirs['model']['image'].pop('positions')) == ('sincos2d', 'learned')
    assert ours == theirs


@pytest.mark.parametrize('place', ['', 'jax_orbax_weight'])
def test_the_tokenizer_is_beside_the_config_or_in_the_folder(place, published, caplog):
    with caplog.at_level(logging.WARNING, 'absl'):
        assert pretrained.read(published / 'jax_orbax_weight')[0]['tokenizer'] is None
    assert f'json of its repository into {published}/jax_orbax_weight and' in caplog.text
    (published / place / 'tokenizer.json').write_text(words_json())
    caplog.clear()
    card, _ = pretrained.read(published / 'jax_orbax_weight')
    assert card['tokenizer']['name'] == 'huggingface' and not caplog.text
    assert (card['tokenizer']['pad_id'], card['tokenizer']['eot_id']) == (0, 0)


@pytest.mark.parametrize(
    ('options', 'separate'),
    [({'use_ocdbt': False}, True), ({'use_zarr3': True}, False)],
    ids=['without OCDBT', 'zarr 3'],
)
def test_every_format_of_orbax(options, separate, published, tmp_path):
    tree = orbax_trees.state(orbax_trees.openvision(separate=separate))
    path = orbax_trees.save(tmp_path / 'other', tree, **options)
    shutil.copy(published / CONFIG, path)
    assert equal(pretrained.read(path)[1], pretrained.read(published / STEP)[1])


@pytest.mark.parametrize('stacked', [False, True])
def test_siglip_of_big_vision_needs_no_config(stacked, tmp_path):
    tree = orbax_trees.siglip()
    if stacked:
        for tower, name in (('img', 'Transformer'), ('txt', 'Encoder_0')):
            blocks = tree[tower][name]
            some = [blocks.pop(f'encoderblock_{i}') for i in range(2)]
            blocks['encoderblock'] = jax.tree.map(lambda *x: np.stack(x), *some)
    path = orbax_trees.save(tmp_path / 'x' / '5', tree)
    (path.parent / 'spiece.model').write_bytes(pieces())
    card, variables = pretrained.read(path.parent)
    assert equal(variables, made('siglip')[1])
    assert card['model'] == made('siglip')[0]['model']
    assert card['tokenizer']['name'] == 'sentencepiece'


def test_a_checkpoint_of_big_vision_s_training(tmp_path):
    state = {'params': orbax_trees.siglip(), 'opt': {'0': {'count': np.int32(3)}}}
    path = orbax_trees.save_as_big_vision(tmp_path / 'checkpoint.bv-000100', state)
    assert equal(pretrained.read(path)[1], made('siglip')[1])
    (path / 'params~img~MAPHead_0~probe' / '.zarray').unlink()
    with pytest.raises(
        ValueError, match='not a SigLIP model of two towers: img/MAPHead_0/probe is'
    ):
        pretrained.read(path)


def test_the_newest_step_is_read(tmp_path, published):
    tree = orbax_trees.openvision()
    for step in (9, 10):
        tree['t'] = np.full(1, step, np.float32)
        orbax_trees.save(tmp_path / 'run' / str(step) / 'state', orbax_trees.state(tree))
    shutil.copy(published / CONFIG, tmp_path / 'run')
    assert pretrained.read(tmp_path / 'run')[1]['params']['logit_scale'] == 10


def test_a_name_says_what_the_weights_do_not(monkeypatch, tmp_path):
    path = orbax_trees.save(tmp_path / 'x', {'params': orbax_trees.openvision()})
    with pytest.raises(ValueError, match=f'image size they are; give the model.s name, .*{CONFIG}'):
        pretrained.read(path)
    with pytest.raises(ValueError, match='width 192 and 192, but the weights have 16, 32 and 24'):
        pretrained.read(f'{path}#model={NAME}')
    monkeypatch.setitem(_openvision._NAMES, NAME, ([32, 24], 16, 160))
    monkeypatch.setattr(_openvision, '_HEADS', {'image': {32: 2}, 'text': {24: 2}})
    card, variables = pretrained.read(f'{path}#model={NAME}')
    like = orbax_trees.OPENVISION
    for tower in ('image', 'text'):
        expected = {**like[tower], 'image_size': 160} if tower == 'image' else like[tower]
        assert expected.items() <= card['model'][tower].items()
    assert card['preprocess']['mean'] == [0.485, 0.456, 0.406]
    assert card['preprocess']['resize'] == 'squash'
    assert variables['params']['image_projection']['kernel'].shape == (32, 20)
    with pytest.raises(ValueError, match=f"Did you mean '{NAME}'"):
        pretrained.read(f'{path}#model={NAME}0')


def test_published_sizes():
    assert {f'UCSC-VLAA/{name}' for name in _openvision._NAMES} == {
        row.name for row in names.published() if 'openvision' in row.name
    }
    for (image, text), _, _ in _openvision._NAMES.values():
        assert image in _openvision._HEADS['image'] and text in _openvision._HEADS['text']


def test_a_config_of_another_model_is_one_line(published):
    config = json.loads((published / CONFIG).read_text())
    config['model_cfg']['vision_cfg']['width'] = 64
    (published / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'default: the parameters do not fit the architecture'):
        pretrained.read(published / STEP)


def lost(item):
    for path in item.glob('ocdbt.process_0/d/*'):
        path.unlink()


def cut(item):
    for path in item.glob('ocdbt.process_0/d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointers(item):
    for path in item.rglob('manifest.ocdbt'):
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')


def garbage(item):
    for path in item.rglob('manifest.ocdbt'):
        path.write_bytes(b'x' * 100)


DAMAGE = {
    lost: 'damaged or incomplete',
    cut: 'damaged or incomplete',
    pointers: 'only a pointer of Git LFS',
    garbage: 'damaged or incomplete',
}


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda x: x.__name__)
def test_damaged_and_partial_items_are_one_line(damage, published):
    damage(published / STEP)
    with pytest.raises(ValueError, match=DAMAGE[damage]) as error:
        pretrained.read(published / STEP)
    assert '\n' not in str(error.value) and 'source locations' not in str(error.value)


def test_a_lost_chunk_is_not_read_as_zeros(published, tmp_path):
    path = orbax_trees.save(tmp_path / 'x', orbax_trees.openvision(), use_ocdbt=False)
    shutil.copy(published / CONFIG, path)
    (path / 'img.head.kernel' / '0.0').unlink()
    with pytest.raises(ValueError, match=r'img\.head\.kernel: damaged or incomplete'):
        pretrained.read(path)


def test_arrays_that_no_file_can_hold_are_refused(published, tmp_path):
    path = orbax_trees.save(tmp_path / 'x', orbax_trees.openvision(), use_ocdbt=False)
    shutil.copy(published / CONFIG, path)
    shape = path / 'img.head.kernel' / '.zarray'
    shape.write_text(json.dumps(json.loads(shape.read_text()) | {'shape': [1 << 20, 1 << 20]}))
    with pytest.raises(ValueError, match='damaged, or compressed as no weights are'):
        pretrained.read(path)


def test_other_orbax_checkpoints_are_one_line(tmp_path):
    orbax_trees.save(tmp_path / 'x', {'params': {'dense': {'kernel': np.ones(3)}}})
    with pytest.raises(ValueError, match=r'named params/dense/kernel; expected those of big_vis'):
        pretrained.read(tmp_path / 'x')
    for name in ('a', 'b'):
        orbax_trees.save(tmp_path / 'two' / name, orbax_trees.siglip())
    with pytest.raises(ValueError, match=r'two: holds 2 checkpoints: .*/a, .*/b; give the path'):
        pretrained.read(tmp_path / 'two')


def test_a_run_of_ours_is_not_taken_for_it(tiny_run):
    assert convert.layout_of(tiny_run) is None
