"""Adapters: against float64 oracles, on any mesh, and the rules that treat them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support.small_models import MODELS, random_variables
from support.small_training import (
    CARD,
    VIT,
    assert_same,
    batch,
    make_optimizer,
    setup,
    steps,
    with_adapters,
)

from clip_jax.data import preprocess
from clip_jax.models import clip
from clip_jax.step import lora, rules

ADAPTERS = {'image': {'rank': 2, 'alpha': 4.0}, 'text': {'rank': 3, 'alpha': 3.0}}
MLP = r'.*/(attention/(qkv|out)|mlp/(in|out))/kernel'
EVERY = {tower: {**options, 'targets': MLP} for tower, options in ADAPTERS.items()}
PLAIN = {**CARD, 'image': {**VIT, 'patch_dropout': 0.0}}
RATE, DECAY = 1e-2, 0.1
LOSS = {'name': 'softmax', 'implementation': 'dense'}


def dense(tree: dict, path: str) -> tuple[np.ndarray, np.ndarray, tuple]:
    """A and B of a matrix in float64, as stacks of matrices [stack, in, r] and [stack, r, out]."""
    a, b = (np.asarray(tree[f'lora/{path}/{x}'], np.float64) for x in 'ab')
    if path.endswith('qkv/kernel'):
        return a.transpose(1, 0, 2), b.transpose(1, 0, 2, 3).reshape(3, b.shape[0], -1), a.shape
    rank = a.shape[-1]
    return a.reshape(1, -1, rank), b.reshape(1, rank, -1), a.shape


def undense(path: str, product: np.ndarray, shape: tuple) -> np.ndarray:
    """A stack of products [stack, in, out] in the shape of the kernel."""
    if path.endswith('qkv/kernel'):
        product = product.transpose(1, 0, 2)
    return product.reshape(shape)


def stacked(path: str, kernel: np.ndarray) -> np.ndarray:
    """A kernel, or its gradient, as a stack of matrices [stack, in, out]."""
    kernel = np.asarray(kernel, np.float64)
    if path.endswith('qkv/kernel'):
        return kernel.reshape(kernel.shape[0], 3, -1).transpose(1, 0, 2)
    inputs = 2 if path.endswith('attention/out/kernel') else 1
    return kernel.reshape(1, int(np.prod(kernel.shape[:inputs])), -1)


def oracle(params: dict, count: int) -> dict:
    """Adapters after some steps: the chain rule and AdamW in float64, by kernels' gradients."""
    model, base = clip.from_card(PLAIN), {k: v for k, v in params.items() if k != 'lora'}
    scales = {'image': 2.0, 'text': 1.0}
    flat = {k: np.asarray(x, np.float64) for k, x in rules.paths(params).items() if 'lora/' in k}
    matrices = sorted({k.removeprefix('lora/').rpartition('/')[0] for k in flat})
    moments = {k: (np.zeros_like(x), np.zeros_like(x)) for k, x in flat.items()}

    @jax.jit
    def gradient(params: dict, data: dict) -> dict:
        def loss(params: dict) -> jax.Array:
            pixels = preprocess.normalize(data['image'], preprocess.CLIP_MEAN, preprocess.CLIP_STD)
            image, text, scale, _ = model.apply({'params': params}, pixels, data['tokens'])
            logits = scale * image @ text.T
            both = jnp.diag(jax.nn.log_softmax(logits, 0) + jax.nn.log_softmax(logits, 1))
            return -jnp.mean(both) / 2

        return jax.grad(loss)(params)

    for t in range(1, count + 1):
        merged = dict(rules.paths(base))
        for path in matrices:
            a, b, _ = dense(flat, path)
            added = undense(path, a @ b, merged[path].shape) * scales[path.partition('/')[0]]
            merged[path] = np.asarray(merged[path] + added, np.float32)
        tree = jax.tree.map_with_path(
            lambda path, x, merged=merged: merged['/'.join(p.key for p in path)], base
        )
        grads = rules.paths(gradient(tree, batch(t)))
        for path in matrices:
            (a, b, shape), g = dense(flat, path), stacked(path, grads[path])
            g = g * scales[path.partition('/')[0]]
            of_b = (a.transpose(0, 2, 1) @ g).transpose(1, 0, 2)  # [r, stack, out]
            found = {
                'a': (g @ b.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(shape),
                'b': of_b.reshape(flat[f'lora/{path}/b'].shape),
            }
            for name, d in found.items():
                key = f'lora/{path}/{name}'
                m, v = moments[key]
                m, v = moments[key] = 0.9 * m + 0.1 * d, 0.98 * v + 0.02 * d * d
                step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-6)
                flat[key] = flat[key] - RATE * (step + DECAY * flat[key])
    return flat


def test_training_is_that_of_a_float64_oracle_and_the_base_stays():
    constant = {'warmup_steps': 0, 'schedule': {'name': 'constant'}, 'weight_decay': DECAY}
    constant |= {'grad_clip_norm': 0.0}
    state, step, put = setup(1, card=PLAIN, adapters=EVERY, learning_rate=RATE, optimizer=constant)
    before = jax.device_get(state.params)
    for t in range(1, 21):
        state, _ = step(state, put(batch(t)))
    after, expected = rules.paths(jax.device_get(state.params)), oracle(before, 20)
    assert len(expected) == 16
    for name, value in rules.paths(before).items():
        if name.startswith('lora/'):
            np.testing.assert_allclose(after[name], expected[name], rtol=0, atol=5e-5)
            assert np.abs(after[name] - value).max() > 1e-2
        else:
            assert np.array_equal(after[name], value)
    moments = rules.paths(state.opt_state)
    assert not [name for name in moments if '/mu/' in name and '/lora/' not in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    'mesh',
    [
        {},
        {'fsdp': 4},
        {'fsdp': 2, 'tensor': 2, 'shard_optimizer': True},
        {'microbatches': 2},
        {'scan': True},
    ],
    ids=str,
)
def test_every_mesh_computes_the_same(mesh):
    devices = 1 if {*mesh} & {'microbatches', 'scan'} else 8
    assert_same(steps(devices, 'vit', adapters=EVERY, loss=LOSS, **mesh), on_one())


@functools.cache
def on_one() -> tuple:
    return steps(1, 'vit', adapters=EVERY, loss=LOSS)


def test_adapters_are_sharded_like_their_matrices():
    state, _, _ = setup(8, fsdp=2, tensor=2, adapters=EVERY)
    block = state.params['lora']['image']['transformer']['block_0']
    specs = {
        (name, x): tuple(block[part][name]['kernel'][x].sharding.spec)
        for part, name in (('attention', 'qkv'), ('attention', 'out'), ('mlp', 'in'))
        for x in 'ab'
    }
    assert specs['qkv', 'a'] == ('fsdp', None, None)
    assert specs['qkv', 'b'] == (None, None, 'tensor', None)
    assert specs['out', 'a'] == ('tensor', None, None)
    assert specs['out', 'b'] == (None, 'fsdp')
    assert specs['in', 'b'] == (None, 'tensor')


def test_merged_weights_compute_what_adapters_beside_them_do():
    """The oracle adds (x A) B to the output of each layer and never makes a merged kernel."""
    model = clip.from_card(MODELS['siglip'])  # it has an attention pool too
    variables = random_variables(model)
    found = lora.resolve(EVERY, variables['params'], clip.logical_axes(model))
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype('f4'), found.abstract())
    scales, flat = lora.scales(found.towers), rules.paths({'lora': adapters})
    seen = set()

    def intercept(call, args, kwargs, context):
        y, path = call(*args, **kwargs), '/'.join((*context.module.path, 'kernel'))
        if context.method_name != '__call__' or f'lora/{path}/a' not in flat:
            return y
        seen.add(path)
        a, b, _ = dense(flat, path)
        x = args[0].reshape(-1, a.shape[1])
        more = jnp.stack([(x @ p) @ q for p, q in zip(a, b, strict=True)], 1).reshape(y.shape)
        return y + scales[path.partition('/')[0]] * more

    size = model.image.image_size
    images = rng.normal(0, 1, (3, size, size, 3)).astype(np.float32)
    tokens = rng.integers(0, 60, (3, model.text.context_length)).astype(np.int32)

    @jax.jit
    def beside(variables):
        # With intermediates the last block computes all tokens, by its layers.
        with nn.intercept_methods(intercept):
            return model.apply(variables, images, tokens, mutable=['intermediates'])[0][:2]

    @jax.jit
    def plain(variables):
        return model.apply(variables, images, tokens)[:2]

    both = {**variables, 'params': {**variables['params'], 'lora': adapters}}
    merged, without = plain(lora.merged(both, found.towers)), plain(variables)
    for one, other, base in zip(merged, beside(variables), without, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        assert np.abs(one - base).max() > 0.1
    assert seen == set(found.matrices)


def settings(adapters: dict = EVERY, name: str = 'clip', **optimizer) -> dict:
    model = clip.from_card(MODELS[name])
    return make_optimizer(model, with_adapters(model, adapters), **optimizer).settings


def trained(**options) -> set[str]:
    return {name for name, x in settings(**options).items() if x.trained}


def test_only_adapters_are_trained_unless_a_rule_says_more():
    names = trained()
    assert len(names) == 32 and all(name.startswith('lora/') for name in names)
    more = trained(rules=({'path': 'image_projection/.*', 'frozen': False},))
    assert more - names == {'image_projection/kernel'}
    less = trained(rules=({'path': 'lora/text/.*', 'frozen': True},))
    assert names - less == {name for name in names if name.startswith('lora/text/')}


def test_locks_layers_and_weight_decay_know_the_matrix_of_an_adapter():
    blocks = trained(freeze=('lock_text', 'lock_image:1'))
    assert blocks and all(x.startswith('lora/image/transformer/block_1/') for x in blocks)
    found = settings(layer_decay={'image': 0.5}, weight_decay=0.3)
    rates = [found[f'lora/image/transformer/block_{i}/mlp/in/kernel/a'].lr_mult for i in range(2)]
    assert rates == [0.25, 0.5]
    assert found['lora/text/transformer/block_0/mlp/in/kernel/b'].weight_decay == 0.3
    with pytest.raises(ValueError, match='every parameter is frozen'):
        settings({'image': EVERY['image']}, freeze=('lock_image',))


def test_by_default_the_kernels_of_attention_have_adapters():
    def matrices(name):
        model = clip.from_card(MODELS[name])
        shapes, axes = clip.shapes(model)['params'], clip.logical_axes(model)
        found = lora.resolve({'image': {'rank': 2}, 'text': {'rank': 0}}, shapes, axes)
        return {path.removeprefix('image/') for path in found.matrices}

    blocks = {f'transformer/block_{i}/attention/{x}/kernel' for i in (0, 1) for x in ('qkv', 'out')}
    pool = {f'attention_pool/attention/{x}/kernel' for x in ('query', 'key', 'value', 'out')}
    assert matrices('clip') == blocks and matrices('siglip') == blocks | pool
    assert matrices('resnet') == {f'attention_pool/{x}/kernel' for x in ('query', 'key', 'value')}


def test_adapters_begin_at_zero_and_depend_on_seed_and_path_alone():
    model = clip.from_card(MODELS['clip'])
    shapes, axes = clip.shapes(model)['params'], clip.logical_axes(model)
    one, other = (
        rules.paths(lora.resolve(x, shapes, axes).init(3))
        for x in (EVERY, {'image': EVERY['image']})
    )
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert all(not np.any(x) for name, x in one.items() if name.endswith('/b'))
    a = [x for name, x in one.items() if name.endswith('mlp/in/kernel/a') and 'image' in name]
    assert abs(np.std(np.concatenate(a)) * 32**0.5 - 1) < 0.2 and not np.array_equal(*a)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rank': -1}, 'lora.image: rank is -1; expected an integer, 0 for no adapters'),
        ({'rank': 40, 'targets': MLP}, 'a matrix of 32 x 32; expected at most 32'),
        ({'rank': 2, 'alpha': -1.0}, 'alpha is -1.0; expected a number'),
        ({'rank': 0, 'alpha': 2.0}, 'rank is 0, so that there are no adapters; set rank too'),
        ({'rank': 0, 'targets': 'x'}, 'rank is 0, so that there are no adapters; set rank too'),
        ({'rank': 2, 'targets': '('}, "targets '\\(' is no regular expression"),
        ({'rank': 2, 'targets': 'qkv'}, "'qkv' matches no parameter; .* are such as transformer/"),
        ({'rank': 2, 'targets': '.*/bias'}, 'matches .*bias, of shape .* which is no matrix'),
        (
            {'rank': 2, 'targets': 'patch_embedding/kernel'},
            'which is no matrix',
        ),
        ({'rank': 2, 'targets': 'position_embedding'}, r'\[5, 32\], which is no matrix'),
        ({'rank': 2, 'rang': 2}, "Did you mean 'rank'"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        settings({'image': options})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('card', 'message'),
    [
        ({'base': 3}, 'it: base is 3; expected'),
        ({'base': 'x', 'relative': ''}, 'it lacks fingerprint; expected that of a run'),
        ({'base': 'x', 'relative': '', 'fingerprint': 'y'}, 'it lacks image'),
        ([], 'it is a list of 0; expected an object'),
    ],
)
def test_a_card_of_somebody_else_is_checked(card, message):
    with pytest.raises(ValueError, match=message):
        lora.of_card(card, 'it')
