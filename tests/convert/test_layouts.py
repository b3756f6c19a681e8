"""Small checkpoints in every layout: import, export, and clear errors."""

import base64
import json
import pathlib
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers as library
from safetensors.numpy import load_file, save_file
from support import torch_writer as torch
from support.layouts import edit, equal, written
from support.process import environment
from support.small_models import CLIP, MODELS, VIT, made, pieces, words_json

import clip_jax
from clip_jax import convert, lookup, tokenizers
from clip_jax.convert import _cards, _resblocks, _table, big_vision, huggingface, open_clip
from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip, presets
from clip_jax.runtime.foreign_arrays import Array

WRITTEN = {
    'open_clip': ['clip', 'eot', 'quick', 'metaclip_2', 'resnet', 'clipa', 'scaled'],
    'huggingface': ['clip', 'eot', 'quick', 'metaclip_2', 'siglip', 'naflex'],
    'big_vision': ['siglip', 'naflex'],
}
WRITTEN['huggingface'] += ['chinese_clip', 'tipsv2']
PAIRS = [(layout, name) for layout, names in WRITTEN.items() for name in names]


def test_every_layout_with_a_writer_is_tested():
    able = {n for n in lookup.names('convert') if hasattr(lookup.module('convert', n), 'write')}
    assert able == set(WRITTEN)


@pytest.mark.parametrize(('layout', 'name'), PAIRS)
def test_write_read_is_the_identity(tmp_path, layout, name):
    card, variables = made(name)
    table, changed = convert.write(tmp_path / 'x', layout, card, variables)
    assert convert.layout_of(tmp_path / 'x') == layout
    again, back = convert.read(tmp_path / 'x')
    assert equal(back, variables)
    _cards.check_expressible(card['model'], again['model'], layout)
    ours = {line.split()[0] for line in table.splitlines()[1:]}
    assert ours == {
        re.sub(r'block_\d+', 'block_*', n.partition('/')[2]) for n in _table.flat(variables)
    }
    assert changed[-1] == 'no tokenizer was written, since the checkpoint has none'
    assert again['preprocess']['size'] == card['preprocess']['size']


@pytest.mark.parametrize(
    ('layout', 'name'),
    [(la, n) for la in WRITTEN for n in MODELS if n not in WRITTEN[la]],
)
def test_what_a_layout_cannot_hold_is_refused_and_nothing_left(tmp_path, layout, name):
    with pytest.raises(ValueError, match=f'the layout {layout} cannot hold this model: .*'):
        convert.write(tmp_path / 'x', layout, *made(name))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_exists_stays_as_it_is(tmp_path):
    (tmp_path / 'x').mkdir()
    with pytest.raises(ValueError, match='exists; name a new folder'):
        convert.write(tmp_path / 'x', 'open_clip', *made('clip'))
    assert not any((tmp_path / 'x').iterdir())


def test_a_layout_that_is_none_gets_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no 'openclip'\. Did you mean 'open_clip'"):
        convert.write(tmp_path / 'x', 'openclip', *made('clip'))


def test_what_was_written_is_verified(tmp_path, monkeypatch):
    from clip_jax.convert import _files

    save = _files.save

    def wrong(path, tensors):
        name = next(n for n in tensors if n.endswith('.weight'))
        save(path, {**tensors, name: np.nextafter(tensors[name], np.inf)})

    monkeypatch.setattr(_files, 'save', wrong)
    with pytest.raises(ValueError, match='these parameters differ when read back'):
        convert.write(tmp_path / 'x', 'open_clip', *made('clip'))
    assert not any(tmp_path.iterdir())


def test_fixed_positions_are_written_as_learned_ones(tmp_path):
    fields = {**CLIP, 'image': {**VIT, 'positions': 'sincos2d', 'pre_norm': False}}
    model = clip.from_card(fields)
    variables = clip.init(model, jax.random.key(0))
    card = {**made('clip')[0], 'model': clip.to_card(model)}
    convert.write(tmp_path / 'x', 'open_clip', card, variables)
    again, back = convert.read(tmp_path / 'x')
    assert again['model']['image']['positions'] == 'learned'
    images = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    one, other = (
        jax.jit(
            lambda variables, built=built: built.apply(variables, images, method='encode_image')
        )
        for built in (clip.from_card(again['model']), model)
    )
    np.testing.assert_allclose(one(back), other(variables), atol=1e-6)


# OpenAI's layout, which is read only.


def openai_arrays(name: str, dtype=np.float32) -> tuple[dict, dict]:
    """Their arrays and our variables; large ones in `dtype`, as OpenAI's archives have them."""
    card, variables = made(name)
    theirs = _table.write(_resblocks.rows(card['model']), variables)
    small = ('ln_', 'bn', 'embedding', 'logit_scale', 'downsample.1')
    theirs = {n: x if any(s in n for s in small) else x.astype(dtype) for n, x in theirs.items()}
    if name == 'resnet':
        theirs['visual.bn1.num_batches_tracked'] = np.int64(7)
    like = clip.shapes(clip.from_card(card['model']))
    lazy = {n: Array(x.shape, x.dtype, lambda x=x: x) for n, x in theirs.items()}
    rows = _resblocks.rows(card['model'])
    return theirs, _table.read(rows, lazy, like, what='test', ignored=_resblocks.ignored)


@pytest.mark.parametrize(
    ('name', 'container'), [('quick', 'zip'), ('resnet', 'legacy'), ('resnet', 'script')]
)
def test_files_of_openai(tmp_path, name, container):
    storages = torch.Storages('cuda:0', legacy=container == 'legacy')
    theirs, variables = openai_arrays(name, np.float16 if container == 'script' else np.float32)
    path = tmp_path / 'any-name'
    if container == 'script':
        theirs |= {n: np.int64(3) for n in _resblocks.NUMBERS}
        torch.write_zip(path, torch.script_of(theirs, storages), storages, script=True)
    elif container == 'zip':
        torch.write_zip(path, torch.state_dict(theirs, storages), storages)
    else:
        torch.write_legacy(path, torch.state_dict(theirs, storages), storages)
    assert convert.layout_of(path) == 'openai'
    card, back = convert.read(path)
    assert equal(back, variables)
    assert card['model'] == made(name)[0]['model']
    assert card['tokenizer'] is None  # the vocabulary is not CLIP's


def test_a_state_dict_without_a_config_is_warned_of(tmp_path, caplog):
    storages = torch.Storages()
    root = torch.state_dict(openai_arrays('quick')[0], storages)
    convert.read(torch.write_zip(tmp_path / 'x.pt', root, storages))
    (record,) = caplog.records
    assert "read as OpenAI's (quick_gelu)" in record.getMessage()


def test_with_clips_vocabulary_comes_clips_tokenizer():
    fields = {'vocab_size': 49408, 'context_length': 77}
    from clip_jax.convert import _tokenizer_files

    card = _tokenizer_files.openai(fields)
    assert card == {'name': 'bpe', 'context_length': 77, 'clean': 'lower'}
    assert _tokenizer_files.open_clip_config(card) == {}  # open_clip's own, in what we write


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.pop('visual.proj'), r'not one of OpenAI.*: visual\.layer1\.0\.conv1\.w'),
        (
            lambda x: x.update({'visual.conv1.weight': np.zeros((64, 3), np.float32)}),
            r'not one of OpenAI.*of an unexpected kind \(not enough values',
        ),
        (lambda x: x.pop('text_projection'), r"not one of OpenAI's .*: text_projection is missing"),
        (lambda x: x.pop('visual.ln_post.bias'), r'1 missing: visual\.ln_post\.bias'),
        (lambda x: x.update(more=np.zeros(3, np.float32)), r'1 unknown: more'),
        (
            lambda x: x.update({'visual.ln_pre.bias': np.zeros(3, np.float32)}),
            r'1 of a wrong shape: visual\.ln_pre\.bias is \(3,\), expected \(64,\)',
        ),
        (
            lambda x: x.update({'ln_final.bias': np.zeros(64, np.int64)}),
            r'1 of a dtype other than float32, .*ln_final\.bias is int64.*Quantized',
        ),
    ],
)
def test_wrong_files_of_openai_list_the_names(tmp_path, change, message):
    arrays, storages = openai_arrays('quick')[0], torch.Storages()
    change(arrays)
    path = torch.write_zip(tmp_path / 'x.pt', torch.state_dict(arrays, storages), storages)
    with pytest.raises(ValueError, match=message) as raised:
        clip_jax.load(path)
    assert str(path) in str(raised.value)


# open_clip's and Hugging Face's.


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['vision_cfg'].update(layers=3), r'12 missing: visual'),
        (
            lambda c: c['vision_cfg'].update(layers=1),
            r'12 unknown: visual\.transformer\.resblocks\.1',
        ),
        (lambda c: c['text_cfg'].update(width=48), r'of a wrong shape.*ln_final\.bias is \(24,\)'),
        (lambda c: c['text_cfg'].update(heads=5), 'width 24 is not a multiple of heads 5'),
        (lambda c: c['vision_cfg'].update(pool_type='max'), r"pool_type: there is no 'max'"),
        (lambda c: c['vision_cfg'].update(qk_norm=True), r'vision_cfg\.qk_norm = True is not supp'),
        (
            lambda c: c.update(text_cfg={'hf_model_name': 'x'}),
            r"text_cfg\.hf_model_name is 'x', .* put the config\.json of that model into",
        ),
        (
            lambda c: c.update(text_cfg={'hf_model_name': 'roberta-base', 'hf_proj_type': 'x'}),
            r'the weights lack text\.transformer\.embeddings',
        ),
        (lambda c: c.pop('embed_dim'), r'model_cfg\.embed_dim is missing'),
        (lambda c: c['vision_cfg'].update(image_size=[32, 64]), r'only square sizes are supported'),
        (
            lambda c: c['vision_cfg'].update(timm_model_name='resnet50'),
            r'timm model .* not supported',
        ),
        (lambda c: c['vision_cfg'].update(ls_init_value=0.1), r'missing: .*ls_1\.gamma'),
        (
            lambda c: c['vision_cfg'].update(width='x'),
            'of an unexpected kind',
        ),
    ],
)
def test_a_config_of_open_clip_that_contradicts_the_weights(tmp_path, change, message):
    path = written(tmp_path, 'open_clip', 'clip')
    edit(path / open_clip.CONFIG, lambda c: change(c['model_cfg']))
    with pytest.raises(ValueError, match=message):
        clip_jax.load(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['vision_config'].update(num_hidden_layers=3), '16 missing: vision_model'),
        (lambda c: c['text_config'].update(hidden_act='relu'), r"hidden_act: there is no 'relu'"),
        (lambda c: c.update(model_type='clip_seg'), r"there is no 'clip_seg'. Did you mean 'clip'"),
        (lambda c: c['vision_config'].update(num_channels=1), 'num_channels is 1; only 3 is supp'),
        (lambda c: c.update(projection_dim=7), r'text_projection\.weight is \(20, 24\), expected'),
    ],
)
def test_a_config_of_hugging_face_that_contradicts_the_weights(tmp_path, change, message):
    path = written(tmp_path, 'huggingface', 'clip')
    edit(path / huggingface.CONFIG, change)
    with pytest.raises(ValueError, match=message):
        clip_jax.load(path)


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface'])
def test_a_file_of_weights_may_be_named_itself(tmp_path, layout):
    path = written(tmp_path, layout, 'clip')
    (weights,) = path.glob('*.safetensors')
    assert convert.layout_of(weights) == layout
    assert equal(convert.read(weights)[1], made('clip')[1])
    for other in ('other.safetensors', 'blob-without-a-suffix'):
        weights = weights.rename(path / other)
        assert equal(convert.read(weights)[1], made('clip')[1])


def test_two_layouts_in_one_folder_are_told_apart_by_the_weights(tmp_path):
    """As in many repositories, which hold the same model for both programs."""
    path = written(tmp_path, 'open_clip', 'clip')
    convert.write(tmp_path / 'y', 'huggingface', *made('clip'))
    for file in (tmp_path / 'y').iterdir():
        file.rename(path / file.name)
    assert convert.layout_of(path / open_clip.SAFETENSORS) == 'open_clip'
    assert convert.layout_of(path / huggingface.SAFETENSORS) == 'huggingface'
    (path / huggingface.SAFETENSORS).unlink()
    assert convert.layout_of(path) == 'open_clip'


@pytest.mark.parametrize(('layout', 'name'), [('open_clip', 'quick'), ('huggingface', 'siglip')])
def test_weights_of_torch(tmp_path, layout, name):
    path = written(tmp_path, layout, name)
    module = lookup.module('convert', layout)
    (weights,) = path.glob('*.safetensors')
    arrays, storages = load_file(weights), torch.Storages()
    weights.unlink()
    file = next(n for n in module.WEIGHTS if n.endswith('.bin'))
    torch.write_zip(path / file, torch.state_dict(arrays, storages), storages)
    assert equal(convert.read(path)[1], made(name)[1])


def test_weights_in_half_precision_are_widened(tmp_path):
    path = written(tmp_path, 'huggingface', 'siglip')
    arrays = load_file(path / huggingface.SAFETENSORS)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        save_file({n: x.astype(dtype) for n, x in arrays.items()}, path / huggingface.SAFETENSORS)
        _, variables = convert.read(path)
        expected = jax.tree.map(
            lambda x, d=dtype: x.astype(d).astype(np.float32), made('siglip')[1]
        )
        assert equal(variables, expected)


def sharded(tmp_path) -> pathlib.Path:
    """A folder of Hugging Face with its weights in two files."""
    path = written(tmp_path, 'huggingface', 'clip')
    arrays = load_file(path / huggingface.SAFETENSORS)
    (path / huggingface.SAFETENSORS).unlink()
    names, where = sorted(arrays), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f'model-0000{i}-of-00002.safetensors'
        save_file({n: arrays[n] for n in part}, path / file)
        where |= dict.fromkeys(part, file)
    index = {'metadata': {'total_size': 1}, 'weight_map': where}
    (path / 'model.safetensors.index.json').write_text(json.dumps(index))
    return path


def test_weights_in_several_files(tmp_path):
    path = sharded(tmp_path)
    assert equal(convert.read(path)[1], made('clip')[1])
    assert equal(convert.read(path / 'model.safetensors.index.json')[1], made('clip')[1])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c['weight_map'].update(more='model-00001-of-00002.safetensors'),
            'the same arrays',
        ),
        (lambda c: c['weight_map'].update(more='../x.safetensors'), 'is not in the same folder'),
        (
            lambda c: c['weight_map'].update(more='model-00003.safetensors'),
            'which is not in the same folder',
        ),
        (lambda c: c.pop('weight_map'), "'weight_map' should map"),
    ],
)
def test_an_index_that_is_wrong(tmp_path, change, message):
    path = sharded(tmp_path)
    edit(path / 'model.safetensors.index.json', change)
    with pytest.raises(ValueError, match=message):
        convert.read(path)


@pytest.mark.parametrize(('layout', 'name'), [('open_clip', 'clip'), ('big_vision', 'siglip')])
@pytest.mark.parametrize('share', [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, layout, name, share):
    path = written(tmp_path, layout, name)
    (weights,) = [p for p in path.iterdir() if p.suffix in ('.safetensors', '.npz')]
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'damaged|no checkpoint'):
        clip_jax.load(path)


def test_json_that_is_none(tmp_path):
    path = written(tmp_path, 'open_clip', 'clip')
    for content, message in (
        ('{"a"', 'not valid JSON'),
        ('[]', 'is a list of 0; expected an object'),
    ):
        (path / open_clip.CONFIG).write_text(content)
        with pytest.raises(ValueError, match=message):
            clip_jax.load(path)


def test_what_is_no_checkpoint_is_told_what_is(tmp_path):
    (tmp_path / 'a.txt').write_text('x')
    with pytest.raises(ValueError, match=r"found \['a.txt'\].*OpenAI's .pt; open_clip's"):
        clip_jax.load(tmp_path)
    with pytest.raises(ValueError, match=r'found a file.*OpenAI'):
        clip_jax.load(tmp_path / 'a.txt')
    with pytest.raises(ValueError, match='no such file or folder'):
        clip_jax.load(tmp_path / 'b.txt')


# big_vision's.


def npz(tmp_path, change) -> pathlib.Path:
    path = written(tmp_path, 'big_vision', 'siglip') / big_vision.FILE
    arrays = change(dict(np.load(path)))
    np.savez(path, **arrays)
    return path


def stack(arrays: dict) -> dict:
    """Puts the blocks of each tower into arrays with a leading axis."""
    found: dict = {}
    for name, x in arrays.items():
        before, block, after = name.partition('encoderblock_')
        number, _, rest = after.partition('/')
        key = f'{before}encoderblock/{rest}' if block else name
        found.setdefault(key, []).append((int(number or 0), x))
    return {
        n: np.stack([x for _, x in sorted(xs, key=lambda p: p[0])])
        if 'encoderblock/' in n
        else xs[0][1]
        for n, xs in found.items()
    }


def test_blocks_may_be_stacked(tmp_path):
    path = npz(tmp_path, stack)
    assert any('encoderblock/' in n for n in np.load(path).files)
    assert equal(convert.read(path)[1], made('siglip')[1])


def test_an_optimizer_beside_the_parameters_is_left_alone(tmp_path):
    path = npz(tmp_path, lambda x: {**x, 'opt/0/mu/img/embedding/kernel': np.zeros(3)})
    assert equal(convert.read(path)[1], made('siglip')[1])


def test_names_may_lack_their_prefix_and_bfloat16_its_type(tmp_path):
    def bare(arrays):
        return {
            n.removeprefix('params/'): x.astype(ml_dtypes.bfloat16).view('V2')
            for n, x in arrays.items()
        }

    path = npz(tmp_path, bare)
    rounded = jax.tree.map(
        lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), made('siglip')[1]
    )
    assert equal(convert.read(path)[1], rounded)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda x: {n: v for n, v in x.items() if 'MAPHead' not in n},
            'MAPHead_0/probe is missing',
        ),
        (lambda x: {n: v for n, v in x.items() if n != 'params/t'}, '1 missing: t'),
        (lambda x: {**x, 'params/img/more': np.zeros(3)}, '1 unknown: img/more'),
        (
            lambda x: {**x, 'params/t': np.zeros(1, np.int32)},
            'of a dtype other than .*: t is int32',
        ),
        (lambda x: {**x, 'params/b': np.array([None])}, '1 of a dtype other than .*: b is object'),
        (
            lambda x: {**x, 'params/img/embedding/kernel': np.zeros((700, 32))},
            r'img/embedding/kernel is \(700, 32\), expected \(675, 32\)',
        ),
    ],
)
def test_wrong_files_of_big_vision(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        clip_jax.load(npz(tmp_path, change))


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    def evil(arrays):
        return {**arrays, 'params/txt/head/bias': np.array([print], object)}

    with pytest.raises(ValueError, match='object'):
        convert.read(npz(tmp_path, evil))


# Tokenizer files next to the weights.


@pytest.mark.parametrize(('layout', 'pad'), [('huggingface', 0), ('big_vision', 0)])
def test_a_sentencepiece_model_beside_siglip(tmp_path, layout, pad):
    path = written(tmp_path, layout, 'siglip')
    (path / 'tokenizer.model').write_bytes(pieces())
    row = clip_jax.load(path).tokenizer('A Red')[0]
    assert row[-1] == pad and row.tolist().count(1) == 1 and row[0] != 1


def test_siglips_own_vocabulary_is_padded_with_its_end_token(tmp_path):
    from clip_jax.convert import _tokenizer_files

    (tmp_path / 'spiece.model').write_bytes(pieces())
    text = {'vocab_size': 32000, 'context_length': 64, 'pool': 'last'}
    for find in (_tokenizer_files.huggingface, _tokenizer_files.big_vision):
        card = find(tmp_path, text)
        assert (card['pad_id'], card['add_bos'], card['context_length']) == (1, False, 64)
        assert base64.b64decode(card['model']) == pieces()


def test_a_tokenizer_json_beside_the_weights(tmp_path):
    path = written(tmp_path, 'huggingface', 'siglip')
    (path / 'tokenizer.json').write_text(words_json())
    special = {'pad_token': {'content': '<pad>'}, 'eos_token': '</s>'}
    (path / 'tokenizer_config.json').write_text(json.dumps(special))
    rows = clip_jax.load(path).tokenizer(['a CAT', 'a cat ' * 9])
    assert rows[0].tolist() == [3, 4, 1, 0, 0, 0, 0, 0, 0]
    assert rows[1].tolist() == [3, 4, 3, 4, 3, 4, 3, 4, 1]


def test_end_tokens_that_the_config_asks_for_are_added(tmp_path):
    path = written(tmp_path, 'huggingface', 'siglip')
    (path / 'tokenizer.json').write_text(words_json(''))
    special = {'pad_token': '<pad>', 'eos_token': '</s>', 'add_eos_token': True}
    (path / 'tokenizer_config.json').write_text(json.dumps(special))
    row = clip_jax.load(path).tokenizer('a cat')[0]
    assert row.tolist() == [3, 4, 1, 0, 0, 0, 0, 0, 0]


def test_open_clip_repairs_and_cleans_as_its_config_says(tmp_path):
    path = written(tmp_path, 'open_clip', 'clipa')
    (path / 'tokenizer.json').write_text(words_json())
    special = {'pad_token': '<pad>', 'sep_token': '</s>'}
    (path / 'special_tokens_map.json').write_text(json.dumps(special))

    def tokens(**options):
        text = {'hf_tokenizer_name': 'any', 'tokenizer_kwargs': options}
        edit(path / open_clip.CONFIG, lambda c: c['model_cfg']['text_cfg'].update(text))
        return clip_jax.load(path).tokenizer('A &lt;cat')[0].tolist()

    assert tokens() == [2, 2, 4, 1, 0, 0, 0, 0, 0]
    assert tokens(clean='canonicalize') == [3, 4, 1, 0, 0, 0, 0, 0, 0]
    # CLIPA: padding stands where the end token would.
    assert tokens(clean='canonicalize', strip_sep_token=True) == [3, 4, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize('layout', ['open_clip', 'huggingface'])
def test_a_tokenizer_that_is_written_is_the_same_when_read(tmp_path, layout):
    cards = {
        'json': {'name': 'huggingface', 'context_length': 9, 'tokenizer_json': words_json()},
        'pieces': {
            'name': 'sentencepiece',
            'context_length': 9,
            'add_bos': False,
            'clean': 'canonicalize',
            'model': base64.b64encode(pieces()).decode(),
        },
    }
    for name, card in cards.items():
        card = tokenizers.from_card(card).card
        (tmp_path / name).mkdir()
        path = tmp_path / name / 'x'
        convert.write(path, layout, *made('clip', tokenizer=card))
        again, _ = convert.read(path)
        assert again['tokenizer'] == card
        assert (path / 'tokenizer_config.json').is_file()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    path = written(tmp_path, 'huggingface', 'siglip')
    many = library.Tokenizer.from_str(words_json())
    many.add_tokens([f'word{i}' for i in range(100)])
    (path / 'tokenizer.json').write_text(many.to_str())
    with pytest.raises(ValueError, match=r"tokenizer's vocab_size is 105 and the model's 60"):
        clip_jax.load(path)


# Size.


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads the peak of memory in /proc')
def test_an_l14_loads_in_little_memory(tmp_path):
    """Full size, random weights; measured in a process of its own."""
    model = clip.from_card(presets.architecture('ViT-L-14'))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), clip.shapes(model))
    card = {'model': clip.to_card(model), 'preprocess': Preprocess(224).card, 'tokenizer': None}
    open_clip.write(tmp_path, card, variables)
    size = (tmp_path / open_clip.SAFETENSORS).stat().st_size
    assert size == pytest.approx(4 * 427_616_513, rel=1e-3)
    total = variables['params']['text']['token_embedding']['embedding'].sum(dtype=np.float64)
    # VmHWM is the process's own; the maximum of getrusage begins with that of its parent.
    program = f"""
import numpy as np
import clip_jax
clip = clip_jax.load({str(tmp_path)!r})
table = np.asarray(clip.variables['params']['text']['token_embedding']['embedding'], np.float64)
(peak,) = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]
print(int(peak) * 1024, table.sum())
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env=environment()
    )
    assert not done.returncode, done.stderr
    peak, found = map(float, done.stdout.split())
    assert found == pytest.approx(total, rel=1e-12)
    assert size < peak <= 2.5 * size
