"""Features from inside of the encoders: every encoder has them, under every transformation."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.small_models import random_variables

import clip_jax
from clip_jax import sharding
from clip_jax.models import clip, features

SMALL = {'width': 16, 'depth': 2, 'heads': 2, 'mlp_dim': 24}
VIT = {'name': 'vit', 'image_size': 16, 'patch_size': 8, **SMALL}
TEXT = {'name': 'transformer', 'vocab_size': 50, 'context_length': 6, 'eot_id': 3, **SMALL}
QUERIES = {'pool_queries': 3, 'pool_width': 8, 'pool_heads': 2}
CNN = {'image_size': 32, 'depths': (1, 1, 1, 2)}
# Encoders, how many tokens or positions their last block has, and how many of these are patches.
IMAGES = {
    'cls': ({**VIT}, 5, 4),
    'mean': ({**VIT, 'pool': 'mean', 'class_token': True, 'norm_after_pool': True}, 5, 4),
    'map': ({**VIT, 'pool': 'map'}, 4, 4),
    'queries': ({**VIT, 'pool': 'queries', **QUERIES}, 4, 4),
    'rope_vit': ({**VIT, 'name': 'rope_vit', 'rope': 'rows_first'}, 5, 4),
    'resnet': ({**CNN, 'name': 'resnet', 'width': 4, 'heads': 4}, 1, 1),
    'convnext': ({**CNN, 'name': 'convnext', 'widths': (8, 8, 8, 16)}, 1, 1),
}
TEXTS = {
    'eot': (TEXT, 6),
    'cls': ({**TEXT, 'pool': 'cls'}, 7),
    'bert': ({**TEXT, 'name': 'bert', 'pad_id': 0, 'pool': 'cls'}, 6),
    'nllb': ({**TEXT, 'name': 'nllb', 'pad_id': 0}, 6),
    'tips': ({**TEXT, 'name': 'nllb', 'pad_id': 0, 'numbering': 'all', 'pool': 'mean'}, 6),
}
TOKENS = jnp.array([[2, 7, 8, 9, 3, 0], [2, 5, 3, 0, 0, 0]])


def model_of(image=VIT, text=TEXT, **how):
    text = {k: v for k, v in text.items() if text['name'] == 'transformer' or k != 'eot_id'}
    model = clip.from_card({'image': image, 'text': text, 'embed_dim': 12}, **how)
    return model, random_variables(model)


def images_of(model, count=2):
    size = model.image.image_size
    return jax.random.normal(jax.random.key(1), (count, size, size, 3))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def compute(model, variables, inputs, tower, kinds):
    of = clip_jax.image_features if tower == 'image' else clip_jax.text_features
    return {kind: of(model, variables, inputs, kind) for kind in kinds}


@pytest.mark.parametrize('name', IMAGES)
def test_every_image_encoder_has_features(name):
    fields, tokens, patches = IMAGES[name]
    model, variables = model_of(fields)
    images = images_of(model)
    kinds = ('embedding', 'pre_projection', 'patches', 'block:-1')
    found = compute(model, variables, images, 'image', kinds)
    assert found['embedding'].shape == (2, 12)
    assert found['block:-1'].shape[:2] == (2, tokens)
    assert found['patches'].shape[:2] == (2, patches)
    # Capturing changes nothing: pooled and projected, they are the embedding.
    expected = jax.jit(functools.partial(model.apply, method='encode_image'))(variables, images)
    expected /= jnp.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found['embedding'], expected, atol=1e-6)
    for x in found.values():
        assert x.dtype == jnp.float32 and np.isfinite(x).all() and np.std(x) > 1e-3
    if name == 'cls':  # after the last norm, as the class token is
        norm = variables['params']['image']['post_norm']
        last = found['block:-1']
        last = (last - last.mean(-1, keepdims=True)) / jnp.sqrt(last.var(-1, keepdims=True) + 1e-5)
        last = last * norm['scale'] + norm['bias']
        np.testing.assert_allclose(found['patches'], last[:, 1:], atol=1e-5)
        np.testing.assert_allclose(found['pre_projection'], last[:, 0], atol=1e-5)


@pytest.mark.parametrize('name', TEXTS)
def test_every_text_encoder_has_features(name):
    fields, tokens = TEXTS[name]
    model, variables = model_of(text=fields)
    kinds = ('embedding', 'pre_projection', 'tokens', 'block:-1', 'block:-2', 'attention:0')
    found = compute(model, variables, TOKENS, 'text', kinds)
    shapes = [(12,), (16,), (6, 16), (tokens, 16), (tokens, 16), (2, tokens, tokens)]
    assert [found[kind].shape[1:] for kind in kinds] == shapes
    np.testing.assert_allclose(found['attention:0'].sum(-1), 1, atol=1e-6)
    if name == 'eot':  # the end tokens are at 4 and 2
        np.testing.assert_allclose(
            found['pre_projection'], found['tokens'][jnp.arange(2), jnp.array([4, 2])], atol=1e-6
        )
        assert np.triu(found['attention:0'], 1).max() == 0  # causal


def test_attention_weights_are_those_that_mix_the_values():
    model, variables = model_of()
    images = images_of(model)
    kinds = ('attention:1', 'block:0')
    found = compute(model, variables, images, 'image', kinds)
    assert found['attention:1'].shape == (2, 2, 5, 5)
    params = variables['params']['image']['transformer']['block_1']
    x, norm = found['block:0'], params['attention_norm']
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * norm['scale'] + norm['bias']
    qkv = jnp.einsum('blc,cthd->tblhd', x, params['attention']['qkv']['kernel'])
    query, key, _ = qkv + params['attention']['qkv']['bias'][:, None, None]
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(8)
    np.testing.assert_allclose(found['attention:1'], jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize('how', [{'scan': True}, {'remat': 'full'}, {'attention': 'splash'}])
def test_features_do_not_depend_on_how_a_model_is_computed(how):
    model, variables = model_of()
    other, _ = model_of(**how)
    images = images_of(model)
    kinds = ('block:0', 'attention:-1')
    if how.get('attention'):
        kinds = ('attention:-1',)  # there is no kernel for this device, and none is needed
    expected = compute(model, variables, images, 'image', kinds)
    found = compute(other, variables, images, 'image', kinds)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)


def test_they_work_under_every_transformation():
    model, variables = model_of()
    images = images_of(model, 8)
    get = functools.partial(clip_jax.image_features, model, variables, features='patches')
    expected = compute(model, variables, images, 'image', ('patches',))['patches']

    def same(found):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    same(jax.jit(jax.vmap(lambda x: get(x[None])[0]))(images))
    mesh = sharding.make_mesh(jax.devices())
    axes = tuple(mesh.axis_names)
    mapped = jax.shard_map(get, mesh=mesh, in_specs=P(axes), out_specs=P(axes))
    assert mesh.size == 8
    same(jax.jit(mapped)(images))
    where = jax.device_put(images, sharding.over_batch(mesh))
    with jax.set_mesh(mesh):
        same(jax.jit(get)(where))
    own = jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(own):
        same(jax.jit(get)(jax.device_put(images, NamedSharding(own, P('batch')))))
    (batch,) = jax.export.symbolic_shape('batch')
    shape = jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32)
    exported = jax.export.export(jax.jit(get))(shape)
    same(exported.call(images))


def test_gradients_of_pixels_are_finite_differences():
    model, variables = model_of()
    pixels = 128 + 40 * images_of(model)

    @jax.jit
    def score(x):
        image = clip_jax.image_features(model, variables, (x / 255 - 0.5) / 0.25)
        text = clip_jax.text_features(model, variables, TOKENS)
        return jnp.sum(image * text)

    gradient = jax.jit(jax.grad(score))(pixels)
    direction = gradient / jnp.sqrt(jnp.mean(gradient**2))
    _, forward = jax.jvp(score, (pixels,), (direction,))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), forward, rtol=1e-4)

    def difference(step):  # of pixels whose mean square changes by the square of the step
        return (score(pixels + step * direction) - score(pixels - step * direction)) / (2 * step)

    without_cubes = (4 * difference(0.25) - difference(0.5)) / 3
    np.testing.assert_allclose(forward, without_cubes, rtol=2e-3)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('patch', "no 'patch'. Did you mean 'patches'"),
        ('tokens', "no 'tokens'"),
        ('block:N', 'block:N needs a number for N, such as block:-2'),
        ('block:2', "features 'block:2': the encoder has 2 blocks, 0 to 1"),
        ('attention:-3', 'the encoder has 2 blocks'),
        ('block:1.5', "no 'block:1.5'"),
    ],
)
def test_wrong_names_are_one_line(name, message):
    model, variables = model_of()
    with pytest.raises(ValueError, match=message) as error:
        clip_jax.image_features(model, variables, images_of(model), name)
    assert '\n' not in str(error.value)


def test_what_an_encoder_does_not_have_is_said():
    model, variables = model_of(IMAGES['resnet'][0])
    with pytest.raises(ValueError, match='the block stage_1/block_0 has no attention'):
        clip_jax.image_features(model, variables, images_of(model), 'attention:0')
    assert features.check('block:-1', 'text') == 'block:-1'
