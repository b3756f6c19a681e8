"""The encoders: their contracts, their sizes, and which inputs influence an output."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_variables

from clip_jax import build, lookup, sharding
from clip_jax.data import patches
from clip_jax.models import clip, positions, presets
from clip_jax.models.attention import token
from clip_jax.models.image import naflex, vit
from clip_jax.models.layers import Transformer, TransformerConfig
from clip_jax.models.text import transformer
from clip_jax.planning import hlo

SMALL = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}
IMAGE = {'name': 'vit', 'image_size': 16, 'patch_size': 8, **SMALL}
QUERIES = {'pool_queries': 3, 'pool_width': 16, 'pool_heads': 2}
# Small fields of every image encoder, and the width of its features.
RESNET = {'name': 'resnet', 'image_size': 32, 'width': 4, 'depths': (1, 1, 1, 1), 'heads': 4}
CONVNEXT = {'name': 'convnext', 'image_size': 32, 'widths': (8, 8, 8, 16), 'depths': (1, 1, 1, 1)}
ROPE_VIT = {**IMAGE, 'name': 'rope_vit', 'mlp': 'swiglu', 'inner_norm': True, 'rope': 'rows_first'}
NAFLEX = {**IMAGE, 'name': 'naflex'}
IMAGES = {'vit': IMAGE, 'resnet': RESNET, 'convnext': CONVNEXT, 'rope_vit': ROPE_VIT}
IMAGES['naflex'] = NAFLEX
FEATURES = {'vit': 32, 'resnet': 128, 'convnext': 16, 'rope_vit': 32, 'naflex': 32}
TEXT = {
    'name': 'transformer',
    'vocab_size': 50,
    'context_length': 10,
    'eot_id': 3,
    **SMALL,
}


class Vocabulary:
    """As much of a tokenizer as an architecture needs: CLIP's."""

    vocab_size, context_length, eot_id = 49408, 77, 49407


def blank(encoder, count: int):
    """Black images as an image encoder takes them."""
    size = encoder.image_size
    if isinstance(encoder, naflex.Encoder):
        made = patches.blank((count,), 6, encoder.patch_size)
        made.grid[:] = 2, 3
        return made
    return jnp.zeros((count, size, size, 3))


def text_model(**fields):
    model = transformer.Encoder(**{k: v for k, v in (TEXT | fields).items() if k != 'name'})
    tokens = jnp.array([[2, 7, 8, 9, 3, 0, 0, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0, 0, 0]])
    return model, random_variables(model, tokens), tokens


def image_model(**fields):
    model = vit.Encoder(**{k: v for k, v in (IMAGE | fields).items() if k != 'name'})
    size = model.image_size
    images = jax.random.normal(jax.random.key(1), (3, size, size, 3))
    return model, random_variables(model, images), images


@functools.partial(jax.jit, static_argnames=('model', 'method'))
def apply(model, variables, *inputs, method=None, dropout=None):
    """Applies a model, in training if there is a key for dropout."""
    options = {} if dropout is None else {'train': True, 'rngs': {'dropout': dropout}}
    return model.apply(variables, *inputs, method=method, **options)


@functools.partial(jax.jit, static_argnames='model')
def image_gradient(model, variables, images):
    return jax.grad(lambda x: jnp.sum(model.apply(variables, x) ** 3))(images)


@pytest.mark.parametrize('name', lookup.names('models.image'))
def test_image_encoder_contract(name):
    module = lookup.module('models.image', name)
    fields = {k: v for k, v in IMAGES[name].items() if k != 'name'}
    model = module.Encoder(**fields)
    images = blank(model, 2)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    features = jax.jit(model.apply)(variables, images)
    assert features.shape == (2, FEATURES[name]) and features.dtype == jnp.float32
    assert module.VARIANTS and hash(model) == hash(module.Encoder(**fields))


@pytest.mark.parametrize('name', lookup.names('models.text'))
def test_text_encoder_contract(name):
    module = lookup.module('models.text', name)
    known = {field.name for field in dataclasses.fields(module.Encoder)} - {'name'}
    fields = {k: v for k, v in {**TEXT, 'pad_id': 0}.items() if k in known}
    model = module.Encoder(**fields)
    tokens = jnp.full((2, 10), 3, jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    assert apply(model, variables, tokens).shape == (2, 32)
    assert module.VARIANTS


def scanned() -> list:
    """Every encoder whose blocks can be scanned, and an input."""
    made = []
    for tower in ('image', 'text'):
        for name in lookup.names(f'models.{tower}'):
            make = lookup.module(f'models.{tower}', name).Encoder
            known = {field.name for field in dataclasses.fields(make)} - {'name'}
            given = IMAGES[name] if tower == 'image' else {**TEXT, 'pad_id': 0}
            if 'scan' in known:
                model = make(**{k: v for k, v in given.items() if k in known}, scan=True)
                x = blank(model, 8) if tower == 'image' else jnp.ones((8, 10), jnp.int32)
                made.append(pytest.param(model, x, id=name))
    return made


@pytest.mark.parametrize(('model', 'x'), scanned())
def test_blocks_are_scanned_on_a_mesh(model, x):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    with jax.set_mesh(sharding.make_mesh(jax.devices(), fsdp=2, tensor=2)):
        assert jax.eval_shape(model.apply, variables, x).shape == (8, 32)


@pytest.mark.parametrize(
    ('preset', 'variant', 'text', 'embed_dim'),
    [
        ('ViT-B-32', 'B/32', 'B', 512),
        ('ViT-B-16', 'B/16', 'B', 512),
        ('ViT-L-14', 'L/14', 'L', 768),
    ],
)
def test_variants_are_the_published_encoders(preset, variant, text, embed_dim):
    """Whose numbers of parameters test_presets knows."""
    config = {
        'image': {'name': 'vit', 'variant': variant, 'image_size': 224},
        'text': {'name': 'transformer', 'variant': text},
        'embed_dim': embed_dim,
    }
    model = build.model(build.architecture(config, Vocabulary()))
    assert model == build.model(presets.architecture(preset))


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('position', [0, 5, jnp.array([0, 3, 5])])
def test_one_token_is_what_it_is_among_all(position, causal, scan):
    sizes = {'depth': 2, 'heads': 2, 'mlp_dim': 64, 'layer_scale': 0.5}
    model = Transformer(TransformerConfig(**sizes, causal=causal, scan=scan))
    x = jax.random.normal(jax.random.key(2), (3, 6, 32))
    mask = None if causal else (jnp.arange(6) != 2)[None, None, None]
    variables = model.init(jax.random.key(0), x)

    def outputs(variables, x, everything):
        if everything:
            return token(model.apply(variables, x, mask), position)
        return model.apply(variables, x, mask, None, position)

    def gradients(everything):
        def loss(*arguments):
            return (outputs(*arguments, everything) ** 3).sum()

        return outputs(variables, x, everything), jax.grad(loss, (0, 1))(variables, x)

    found, wanted = (jax.jit(gradients, static_argnums=0)(every) for every in (False, True))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert found[0].shape == (3, 1, 32)


def test_the_last_block_computes_one_token_unless_its_outputs_are_captured():
    model = vit.Encoder(image_size=32, patch_size=8, pool='cls', **SMALL)
    images = jnp.zeros((1, 32, 32, 3))
    variables = model.init(jax.random.key(0), images)

    def products(**options):
        run = functools.partial(model.apply, **options)
        return sum(hlo.flops(jax.make_jaxpr(run)(variables, images).jaxpr).values())

    captured = {'capture_intermediates': True, 'mutable': ['intermediates']}
    assert products() < 0.6 * products(**captured)
    _, kept = model.apply(variables, images, **captured)
    block = kept['intermediates']['transformer']['block_0']['__call__'][0]
    assert block.shape == (1, 17, 32)


def test_the_causal_mask_lets_nothing_of_the_future_through():
    """The gradient of each position's output with respect to later positions' inputs is zero."""
    x = jax.random.normal(jax.random.key(2), (1, 6, 32))

    def influence(causal):
        model = Transformer(TransformerConfig(depth=2, heads=2, mlp_dim=64, causal=causal))
        variables = random_variables(model, x)
        output = jax.jacobian(lambda x: model.apply(variables, x)[0])
        jacobian = jax.jit(output)(x)[:, :, 0]
        return np.abs(np.asarray(jacobian)).max(axis=(1, 3))  # [to, from]

    future = np.triu(np.ones((6, 6), bool), 1)
    causal = influence(True)
    assert (causal[future] == 0).all()
    assert (causal[~future] > 0).all()
    assert (influence(False) > 0).all()


def test_text_is_read_at_its_end_and_what_follows_does_not_matter():
    model, variables, tokens = text_model()
    features = apply(model, variables, tokens)
    other_padding = tokens.at[:, 6:].set(9)
    assert jnp.array_equal(features, apply(model, variables, other_padding))
    changed = apply(model, variables, tokens.at[:, 1].set(11))
    assert (jnp.abs(changed - features).max(axis=1) > 1e-3).all()
    # Cutting off the padding changes nothing but the shapes of sums.
    np.testing.assert_allclose(apply(model, variables, tokens[:, :6]), features, atol=1e-6)


def test_text_ends_at_its_first_end_token():
    model, variables, tokens = text_model()
    twice = tokens.at[:, 8].set(3)
    assert jnp.array_equal(apply(model, variables, tokens), apply(model, variables, twice))


def test_the_largest_id_is_the_end_where_it_is_the_largest():
    eot, variables, tokens = text_model(eot_id=49)
    tokens = jnp.where(tokens == 3, 49, tokens)
    argmax, _, _ = text_model(pool='argmax')
    assert argmax.eot_id is None
    assert jnp.array_equal(apply(eot, variables, tokens), apply(argmax, variables, tokens))


def test_pools_at_the_last_token_need_the_full_context():
    for pool in ('last', 'cls'):
        model, variables, tokens = text_model(pool=pool)
        features = apply(model, variables, tokens)
        assert jnp.abs(features - apply(model, variables, tokens.at[:, 1].set(11))).max() > 1e-3
        with pytest.raises(ValueError, match='needs texts of 10 tokens, these have 6; pad them'):
            apply(model, variables, tokens[:, :6])


def test_padding_is_hidden_behind_a_class_token_one_place_late():
    """As in the program that trained the published models."""
    mask = transformer.padding_mask(jnp.array([[True, True, False], [True, True, True]]))
    assert mask[:, 0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]
    model, variables, _ = text_model(pool='cls')
    table = variables['params']['token_embedding']['embedding']
    other = jax.tree.map(lambda x: x, variables)
    other['params']['token_embedding']['embedding'] = table.at[0].add(jnp.arange(32) % 3)
    short, whole = jnp.array([[2, 7] + [0] * 8]), jnp.array([[2] * 10])
    assert jnp.array_equal(apply(model, variables, whole), apply(model, other, whole))
    assert jnp.abs(apply(model, variables, short) - apply(model, other, short)).max() > 1e-4


def test_layer_scale_weighs_what_a_block_adds():
    deep, _, images = image_model(layer_scale=0.1, depth=2)
    variables = jax.jit(deep.init)(jax.random.key(0), images)
    blocks = variables['params']['transformer']
    for name in ('attention_scale', 'mlp_scale'):
        np.testing.assert_array_equal(blocks['block_0'][name], np.full(32, 0.1, np.float32))
    # With nothing added a block is the identity, so that one is as good as two.
    zero = jax.tree.map_with_path(
        lambda path, x: 0 * x if path[-1].key.endswith('_scale') else x, variables
    )
    shallow, _, _ = image_model(layer_scale=0.1, depth=1)
    first = {'block_0': zero['params']['transformer']['block_0']}
    one = {'params': {**zero['params'], 'transformer': first}}
    np.testing.assert_array_equal(apply(deep, zero, images), apply(shallow, one, images))
    assert jnp.abs(apply(deep, variables, images) - apply(deep, zero, images)).max() > 1e-3


@pytest.mark.parametrize(('pool', 'after'), [('mean', True), ('mean', False), ('map', True)])
def test_the_last_norm_may_come_after_the_pooling(pool, after):
    model, variables, images = image_model(pool=pool, norm_after_pool=after)
    features = apply(model, variables, images)
    normed = jnp.allclose(features.mean(axis=1), 0, atol=1e-5) and jnp.allclose(
        features.var(axis=1), 1, atol=1e-2
    )
    assert normed == after


def test_equivalent_fields_are_normalized():
    plain = vit.Encoder(**{k: v for k, v in IMAGE.items() if k != 'name'})
    same = {**IMAGE, 'class_token': True, 'norm_after_pool': True}
    assert vit.Encoder(**{k: v for k, v in same.items() if k != 'name'}) == plain


def test_what_is_left_of_an_image_beyond_its_patches_is_not_seen():
    model, variables, _ = image_model(image_size=20)
    images = jax.random.normal(jax.random.key(1), (1, 20, 20, 3))
    gradient = image_gradient(model, variables, images)
    assert (gradient[:, 16:] == 0).all() and (gradient[:, :, 16:] == 0).all()
    assert (jnp.abs(gradient[:, :16, :16]).max(axis=-1) > 0).all()


@pytest.mark.parametrize('pool', vit.POOLS)
def test_every_pooling_sees_every_patch(pool):
    model, variables, images = image_model(pool=pool, **QUERIES)
    gradient = image_gradient(model, variables, images)
    patches = np.abs(np.asarray(vit.patches(gradient, 8))).max(axis=(2, 3, 4))
    assert patches.shape == (3, 4)
    assert (patches > 0).all()
    assert ('class_embedding' in variables['params']) == (pool == 'cls')


def test_patches_are_the_squares_of_the_image_row_by_row():
    image = jnp.arange(4 * 6 * 1).reshape(1, 4, 6, 1)
    cut = vit.patches(image, 2)
    assert cut.shape == (1, 6, 2, 2, 1)
    assert cut[0, 1, :, :, 0].tolist() == [[2, 3], [8, 9]]
    assert cut[0, 3, :, :, 0].tolist() == [[12, 13], [18, 19]]


def test_patch_embedding_is_a_strided_convolution():
    _, variables, images = image_model()
    kernel = variables['params']['patch_embedding']['kernel']
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (8, 8), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    cut = vit.patches(images, 8).reshape(3, 4, -1) @ kernel.reshape(-1, 32)
    np.testing.assert_allclose(convolved.reshape(3, 4, 32), cut, atol=1e-5)


def test_fixed_positions_tell_rows_from_columns_and_are_no_parameters():
    table = np.asarray(positions.sincos2d(3, 16))
    assert table.shape == (9, 16)
    assert np.abs(table[:, None] - table[None]).max(axis=-1)[~np.eye(9, dtype=bool)].min() > 0.1
    # Neighbors in a row share the row's half, neighbors in a column the column's.
    np.testing.assert_array_equal(table[0, 8:], table[1, 8:])
    np.testing.assert_array_equal(table[0, :8], table[3, :8])
    np.testing.assert_allclose(table[1, 0], np.sin(1), rtol=1e-6)
    model, variables, images = image_model(positions='sincos2d')
    assert 'position_embedding' not in variables['params']
    turned = apply(model, variables, images[:, ::-1]) - apply(model, variables, images)
    assert jnp.abs(turned).max() > 1e-3


def test_patch_dropout_keeps_its_share_and_only_in_training():
    x = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (500, 8, 2))
    kept = vit.drop_patches(x, 0.75, jax.random.split(jax.random.key(0), 500))
    assert kept.shape == (500, 2, 2)
    assert (kept[:, 0] != kept[:, 1]).all()  # no patch twice
    counts = np.bincount(np.asarray(kept[..., 0], int).ravel(), minlength=8)
    assert counts.min() > 80  # 125 expected of each
    model, variables, images = image_model(patch_dropout=0.5)
    whole = apply(image_model()[0], variables, images)
    key = jax.random.key(0)
    assert jnp.array_equal(apply(model, variables, images), whole)
    dropped = apply(model, variables, images, dropout=key)
    assert jnp.abs(dropped - whole).max() > 1e-3
    assert jnp.array_equal(dropped, apply(model, variables, images, dropout=key))


def test_computation_is_bfloat16_with_float32_parameters():
    card = {'image': IMAGE, 'text': TEXT, 'embed_dim': 16}
    model, exact = build.model(card, 'bfloat16'), build.model(card, 'float32')
    variables = clip.init(model, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    images, tokens = jnp.ones((2, 16, 16, 3)), jnp.full((2, 10), 3)
    features = apply(model, variables, images, method='encode_image')
    assert features.dtype == jnp.bfloat16
    text = apply(model, variables, tokens, method='encode_text')
    assert text.dtype == jnp.bfloat16
    image, text, scale, bias = apply(model, variables, images, tokens)
    assert {image.dtype, text.dtype, scale.dtype} == {jnp.dtype('float32')} and bias is None
    np.testing.assert_allclose(image, apply(exact, variables, images, tokens)[0], atol=0.03)


def test_embeddings_are_l2_normalized_and_the_initial_scale_is_one_over_007():
    model = build.model({'image': IMAGE, 'text': TEXT, 'embed_dim': 16})
    variables = clip.init(model, jax.random.key(0))
    images, tokens = jax.random.normal(jax.random.key(1), (2, 16, 16, 3)), jnp.full((2, 10), 3)
    image, text, scale, _ = apply(model, variables, images, tokens)
    for features in (image, text):
        np.testing.assert_allclose(jnp.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert scale == pytest.approx(1 / 0.07, rel=1e-6)
    features = apply(model, variables, images, method='encode_image')
    np.testing.assert_allclose(
        features / jnp.linalg.norm(features, axis=1, keepdims=True), image, atol=1e-6
    )


TIPS = {**ROPE_VIT, 'rope': 'none', 'registers': 1, 'key_bias': True, 'layer_scale': 1.0}
PADDED = {k: v for k, v in {**TEXT, 'pad_id': 0}.items() if k != 'eot_id'}


@pytest.mark.parametrize(
    ('image', 'text'),
    [
        (IMAGE, {**TEXT, 'pool': 'cls'}),
        pytest.param({**IMAGE, 'pool': 'map'}, TEXT, marks=pytest.mark.slow),
        pytest.param(RESNET, {**TEXT, 'pool': 'last'}, marks=pytest.mark.slow),
        pytest.param(CONVNEXT, {**PADDED, 'name': 'nllb'}, marks=pytest.mark.slow),
        (ROPE_VIT, {**PADDED, 'name': 'bert'}),
        (TIPS, {**PADDED, 'name': 'nllb', 'numbering': 'all', 'pool': 'mean'}),
    ],
    ids=['cls', 'map', 'resnet', 'convnext', 'rope_vit', 'tips'],
)
def test_both_encoders_are_exported_for_any_batch_size(image, text):
    model = build.model({'image': image, 'text': text, 'embed_dim': 16})
    variables = random_variables(model)
    (batch,) = jax.export.symbolic_shape('batch')
    size = image['image_size']
    for method, shape, dtype in (
        ('encode_image', (size, size, 3), jnp.float32),
        ('encode_text', (10,), jnp.int32),
    ):
        encode = jax.jit(functools.partial(model.apply, method=method))
        inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
        exported = jax.export.export(encode)(variables, inputs)
        for n in 1, 3:
            given = jnp.ones((n, *shape), dtype)
            found, expected = exported.call(variables, given), encode(variables, given)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('numbering', ['text', 'all'])
def test_padding_before_a_text_moves_it_only_if_all_tokens_are_numbered(numbering):
    fields = {**PADDED, 'name': 'nllb', 'numbering': numbering, 'pool': 'mean'}
    model = build.model({'image': IMAGE, 'text': fields, 'embed_dim': 16})
    encode = functools.partial(model.apply, random_variables(model), method='encode_text')
    text = [7, 9, 5]
    tokens = jnp.array([[*text, *[0] * 7], [0, 0, *text, *[0] * 5], [*[0] * 7, *text]])
    first, moved, last = encode(tokens)
    np.testing.assert_allclose(encode(tokens[:1, :3])[0], first, atol=1e-5)
    for other in (moved, last):
        assert np.allclose(other, first, atol=1e-5) == (numbering == 'text')
    with pytest.raises(ValueError, match="numbering: there is no 'al'"):
        build.model({'image': IMAGE, 'text': {**fields, 'numbering': 'al'}, 'embed_dim': 16})


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'image_size': 7}, 'image_size 7 is smaller than patch_size 8'),
        ({'heads': 5}, 'width 32 is not a multiple of heads 5'),
        ({'heads': True}, 'heads is True; expected at least 1'),
        ({'norm_eps': 0.0}, r'norm_eps is 0\.0; expected a number between 0 and 1'),
        ({'norm_eps': float('nan')}, 'norm_eps is nan'),
        ({'heads': 0}, 'heads is 0; expected at least 1'),
        ({'depth': 0}, 'depth is 0'),
        ({'mlp_dim': -4}, 'mlp_dim is -4'),
        ({'patch_size': 0}, 'patch_size is 0'),
        ({'patch_dropout': 1.0}, 'patch_dropout is 1.0'),
        ({'pool': 'max'}, "no 'max'"),
        ({'pool': 'queries'}, 'pool_: width is 0'),
        ({'positions': 'sincos'}, "Did you mean 'sincos2d'"),
        ({'positions': 'sincos2d', 'width': 30}, 'width is 30; .* multiple of 4'),
        ({'activation': 'geluu'}, "Did you mean 'gelu'"),
    ],
)
def test_impossible_fields_are_refused_when_the_encoder_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        image_model(**fields)


def test_activations_are_the_published_formulas():
    from clip_jax.models.layers import ACTIVATIONS

    x = np.linspace(-4, 4, 41)
    erf = np.vectorize(__import__('math').erf)
    exact = {
        'gelu': x * (1 + erf(x / np.sqrt(2))) / 2,
        'gelu_tanh': x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        'quick_gelu': x / (1 + np.exp(-1.702 * x)),
        'relu': np.maximum(x, 0),
    }
    assert exact.keys() == ACTIVATIONS.keys()
    for name, values in exact.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), values, atol=2e-6)
