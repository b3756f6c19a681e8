"""Plug-ins outside of the package, named by their import paths, train a step on a mesh."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_training import TEXT, VIT, batch, make_optimizer

from clip_jax import build, sharding, tokenizers
from clip_jax.data import preprocess
from clip_jax.models import clip
from clip_jax.step import state
from clip_jax.step.train_step import bind_step

LOSS = """
import jax
import jax.numpy as jnp

INIT = {'init_logit_bias': -1.0}


def loss(image, text, scale, bias=None, *, margin, power=1):
    similarity = scale * image @ text.T + bias
    positive = jnp.diagonal(similarity)[:, None]
    hinge = jax.nn.relu(margin + similarity - positive) ** power
    return jnp.mean(hinge), {'active': jnp.mean(hinge > 0)}
"""
MIXER = """
import flax.linen as nn
import jax.numpy as jnp

LOGICAL_AXES = {'mixer/in': ('length', 'width'), 'mixer/pixels': ('pixels', 'width')}


class Mixer(nn.Module):
    width: int
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.1)
        pixels = self.param('pixels', init, (x.shape[-1], self.width), self.param_dtype)
        places = self.param('in', init, (x.shape[-2], self.width), self.param_dtype)
        return jnp.einsum('blp,pw,lw->bw', x, pixels.astype(x.dtype), places.astype(x.dtype))


class Encoder(nn.Module):
    image_size: int
    width: int = 16
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train=False, example_index=None):
        x = images.astype(self.dtype).reshape(len(images), self.image_size, -1)
        return Mixer(self.width, self.param_dtype, name='mixer')(x)

    def with_image_size(self, params, image_size):
        raise ValueError('toys.mixer: images of one size only')
"""
TOKENIZER = """
import dataclasses
import numpy as np


@dataclasses.dataclass
class Tokenizer:
    context_length: int
    vocab_size: int = 80
    eot_id: int = 3
    pad_id: int = 0

    @property
    def card(self):
        return {'name': 'toys.letters', 'context_length': self.context_length}

    @classmethod
    def from_card(cls, card):
        return cls(card['context_length'])

    def __call__(self, texts):
        rows = [[4 + ord(c) % 70 for c in text[: self.context_length - 1]] for text in texts]
        rows = [row + [3] + [0] * (self.context_length - 1 - len(row)) for row in rows]
        return np.array(rows, np.int32)


def create(captions, *, context_length):
    return Tokenizer(context_length)
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A package of plug-ins that is not ours."""
    folder = tmp_path / 'toys'
    folder.mkdir()
    for name, text in (
        ('__init__', ''),
        ('margin', LOSS),
        ('mixer', MIXER),
        ('letters', TOKENIZER),
    ):
        (folder / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition('.')[0] == 'toys']:
        del sys.modules[name]


def test_a_loss_an_encoder_and_a_tokenizer_of_ones_own_train_a_step(toys):
    tokenizer = build.tokenizer({'name': 'toys.letters', 'context_length': 8}, ())
    again = tokenizers.from_card(json.loads(json.dumps(tokenizer.card)))
    np.testing.assert_array_equal(again(['a cat']), tokenizer(['a cat']))
    image = {'name': 'toys.mixer', 'image_size': 16, 'width': 32}
    text = {k: v for k, v in TEXT.items() if k not in ('vocab_size', 'context_length', 'eot_id')}
    config = {'image': image, 'text': text, 'embed_dim': 16}
    card = build.architecture(config, tokenizer, loss='toys.margin')
    assert card['image'] == {'name': 'toys.mixer', 'image_size': 16, 'width': 32}
    assert (card['init_logit_scale'], card['init_logit_bias']) == (clip.INIT_LOGIT_SCALE, -1.0)
    model = build.model(json.loads(json.dumps(card)), remat='full', scan=True)
    assert clip.to_card(model) == card

    mesh = sharding.make_mesh(jax.devices(), fsdp=8)
    optimizer = make_optimizer(model)
    loss = build.loss({'name': 'toys.margin', 'margin': 0.5, 'power': 2, 'block_size': None}, mesh)
    step = bind_step(
        model,
        loss,
        optimizer,
        mean=preprocess.CLIP_MEAN,
        std=preprocess.CLIP_STD,
        microbatches=1,
    )
    current = state.create(model, optimizer, seed=0, mesh=mesh)
    kernel = current.params['image']['mixer']['pixels']
    assert kernel.sharding.shard_shape(kernel.shape) == (16 * 3, 32 // 8)
    with jax.set_mesh(mesh):
        new, metrics = jax.jit(step)(current, batch(0))
    assert new.step == 1 and np.isfinite(metrics['loss']) and 0 < metrics['active'] <= 1
    assert new.params['image']['mixer']['pixels'].sharding.is_equivalent_to(kernel.sharding, 2)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({}, ('toys.margin', 'margin must be given')),
        ({'margin': 1.0, 'powr': 2}, ('toys.margin', "'powr'", "'power'")),
        ({'margin': 1.0, 'mesh': 2}, ('toys.margin', "'mesh'")),
        ({'margin': 1.0, 'scale': 2}, ('toys.margin', "'scale'")),
    ],
)
def test_wrong_options_of_a_loss_are_refused_at_the_door(toys, options, words):
    with pytest.raises(ValueError) as error:
        build.loss({'name': 'toys.margin', **options}, sharding.make_mesh())
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('x = 1', ('toys.wrong', 'lacks loss')),
        ('def loss(a, b): pass', ('toys.wrong', 'loss(a, b)', 'image, text, scale, bias')),
        (LOSS.replace('jnp.mean(hinge), {', 'hinge, {'), ('toys.wrong', 'expected (scalar,')),
        (LOSS.replace('init_logit_bias', 'bias'), ('toys.wrong', "'bias'", 'init_logit_bias')),
    ],
)
def test_a_module_that_is_no_loss_is_refused_at_the_door(toys, text, words):
    (toys / 'wrong.py').write_text(text)
    with pytest.raises(ValueError) as error:
        build.loss({'name': 'toys.wrong', 'margin': 1.0}, sharding.make_mesh())
    assert all(word in str(error.value) for word in words)


def test_a_loss_may_take_the_mesh_or_any_option(toys):
    (toys / 'open.py').write_text(
        'def loss(image, text, scale, bias=None, *, axis, **options):\n'
        "    return (image * text).sum() * len(axis) * options['factor'], {}\n"
    )
    loss = build.loss({'name': 'toys.open', 'factor': 2.0}, sharding.make_mesh())
    value, _ = loss(jnp.eye(4), jnp.eye(4), jnp.float32(1))
    assert value == 4 * len(sharding.AXES) * 2


def test_an_encoder_that_is_not_importable_is_named(toys):
    card = {'image': {**VIT, 'name': 'no_such.encoder'}, 'text': TEXT, 'embed_dim': 8}
    for fields in (card, {**card, 'image': {**VIT, 'name': 'toys.margin'}}):
        with pytest.raises(ValueError, match=r'models/image.*(no_such\.encoder|toys\.margin)'):
            build.model(fields)


def test_a_parameter_without_logical_axes_names_the_table(toys):
    (toys / 'mixer.py').write_text(MIXER.replace('mixer/pixels', 'mixer/other'))
    card = {'image': {'name': 'toys.mixer', 'image_size': 16}, 'text': TEXT, 'embed_dim': 8}
    model = build.model(card)
    shardings = functools.partial(sharding.of_tree, clip.shapes(model), sharding.make_mesh())
    with pytest.raises(ValueError, match=r'image/mixer/pixels with 2 axes.*LOGICAL_AXES'):
        shardings(clip.logical_axes(model))
