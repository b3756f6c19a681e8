"""What every file of losses/ promises, tested on each, in each implementation."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from clip_jax import lookup, sharding
from clip_jax.models.clip import l2_normalize
from clip_jax.planning import hlo

MODULES = [pytest.param(lookup.module('losses', n), id=n) for n in lookup.names('losses')]
LOSSES = [
    pytest.param(*p.values, implementation, id=f'{p.id}-{implementation}')
    for p in MODULES
    for implementation in p.values[0].IMPLEMENTATIONS
]
# Devices, pairs per device, masked: every two values, and all of those on which the way of the
# communication depends. In blocks of 4, 5 pairs are two padded blocks and 12 three full ones.
CASES = [(1, 5, False), (2, 12, True), (4, 5, True), (8, 12, False), (8, 5, True), (1, 12, True)]
SCALE = jnp.float32(100)


def bias(module) -> jax.Array | None:
    value = module.INIT['init_logit_bias']
    return None if value is None else jnp.float32(value)


def pairs(n, d=24, *, seed=0):
    """L2-normalized embeddings, positives more similar than negatives, with some of them equal."""
    image, other = jax.random.normal(jax.random.key(seed), (2, n, d))
    if n > 5:
        image, other = (x.at[5].set(x[3]) for x in (image, other))
    return l2_normalize(image), l2_normalize(image + 3 * other)


@functools.partial(jax.jit, static_argnames=('module', 'implementation', 'mesh', 'block_size'))
def run(module, implementation, args, mask=None, mesh=None, block_size=512):
    """((value, metrics), gradients) of the arguments that are not None."""
    fn = functools.partial(
        module.loss, mask=mask, implementation=implementation, mesh=mesh, block_size=block_size
    )
    given = tuple(x for x in args if x is not None)
    numbers = tuple(range(len(given)))
    return jax.value_and_grad(fn, argnums=numbers, has_aux=True)(*given)


def on_devices(n, image, text):
    mesh = sharding.make_mesh(jax.devices()[:n])
    embeddings = sharding.over_batch(mesh)
    return mesh, *(jax.device_put(x, embeddings) for x in (image, text))


def assert_exact(module, result, image, text, mask=None):
    (value, _), gradients = result
    numbers = SCALE, bias(module)
    exact, sizes = getattr(oracles, module.__name__.rpartition('.')[2])(
        image, text, *numbers, mask=mask
    )
    for ours, theirs, size in zip((value, *gradients), exact, sizes, strict=False):
        assert np.linalg.norm(np.asarray(ours, np.float64) - theirs) < 2e-6 * size


@pytest.mark.parametrize('module', MODULES)
def test_signature(module):
    parameters = inspect.signature(module.loss).parameters
    assert [*parameters][:4] == ['image', 'text', 'scale', 'bias']
    assert parameters['bias'].default is None
    own = {k: p for k, p in parameters.items() if k not in ('image', 'text', 'scale', 'bias')}
    assert all(p.kind is p.KEYWORD_ONLY for p in own.values())
    assert {'mask', 'mesh', 'axis', 'implementation', 'block_size'} <= {*own}
    assert all(p.default is not p.empty for p in own.values())
    assert {*module.INIT} <= {'init_logit_scale', 'init_logit_bias'}


@pytest.mark.parametrize('module', MODULES)
def test_without_an_implementation_a_mesh_gathers(module):
    image, text = pairs(16)
    mesh, *sharded = on_devices(8, image, text)

    def program(*inputs, **options):
        return str(jax.make_jaxpr(functools.partial(module.loss, **options))(*inputs, SCALE))

    assert 'all_gather' in program(*sharded, mesh=mesh)
    assert program(*sharded, mesh=mesh) == program(*sharded, mesh=mesh, implementation='gather')
    assert program(image, text) == program(image, text, implementation='dense')


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_matching_pairs_cost_less_and_pairs_may_come_in_any_order(module, implementation):
    embeddings = l2_normalize(jax.random.normal(jax.random.key(0), (16, 8)))
    loss = functools.partial(module.loss, implementation=implementation)
    right, metrics = loss(embeddings, embeddings, jnp.float32(20))
    wrong, _ = loss(embeddings, jnp.roll(embeddings, 1, axis=0), jnp.float32(20))
    other_order, _ = loss(embeddings[::-1], embeddings[::-1], jnp.float32(20))
    assert right.shape == () and right.dtype == jnp.float32
    assert right < wrong
    assert jnp.allclose(right, other_order, rtol=1e-5)
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
@pytest.mark.parametrize(('devices', 'local', 'masked'), CASES)
def test_value_and_gradients_equal_a_float64_oracle(module, implementation, devices, local, masked):
    image, text = pairs(devices * local)
    mask = np.random.default_rng(1).random(len(image)) < 0.7 if masked else None
    mesh, *embeddings = on_devices(devices, image, text)
    result = run(
        module, implementation, (*embeddings, SCALE, bias(module)), mask, mesh, block_size=4
    )
    assert_exact(module, result, image, text, mask)
    if masked:
        left_out = np.asarray(result[1][0])[~mask]
        assert not left_out.any()
    if implementation != 'dense':
        expected = sharding.over_batch(mesh)
        assert all(x.sharding.is_equivalent_to(expected, 2) for x in result[1][:2])


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_the_gradient_is_multiplied_by_what_comes_after(module, implementation):
    """A loss that is only a part of an objective, and a loss that is not differentiated."""
    image, text = pairs(16)
    mesh, *embeddings = on_devices(8, image, text)
    loss = functools.partial(module.loss, implementation=implementation, mesh=mesh)
    args = [*embeddings, SCALE] + ([bias(module)] if bias(module) is not None else [])

    @jax.jit
    def both(*args):
        plain = jax.grad(lambda *x: loss(*x)[0], argnums=(0, 2))(*args)
        thrice = jax.grad(lambda *x: 3 * loss(*x)[0] + x[2], argnums=(0, 2))(*args)
        return plain, thrice, loss(*args)[0]

    plain, thrice, value = both(*args)
    np.testing.assert_allclose(thrice[0], 3 * plain[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(thrice[1], 3 * plain[1] + 1, rtol=1e-5)
    alone = run(module, implementation, (*embeddings, *args[2:]), mesh=mesh)[0][0]
    assert value == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
@pytest.mark.parametrize('block_size', [1, 7, 512])
def test_blocks_on_one_device_change_nothing(module, implementation, block_size):
    image, text = pairs(24)
    result = run(module, implementation, (image, text, SCALE, bias(module)), block_size=block_size)
    assert_exact(module, result, image, text)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_a_batch_over_two_axes_and_a_third_that_holds_copies(module, implementation):
    devices = np.reshape(jax.devices(), (2, 2, 2))
    mesh = jax.sharding.Mesh(devices, ('data', 'fsdp', 'tensor'))
    image, text = pairs(16)
    loss = functools.partial(module.loss, implementation=implementation, mesh=mesh)
    for axis in (('data', 'fsdp'), mesh.axis_names):
        with_axis = functools.partial(loss, axis=axis)
        args = [image, text, SCALE] + ([bias(module)] if bias(module) is not None else [])
        numbers = tuple(range(len(args)))
        result = jax.jit(jax.value_and_grad(with_axis, numbers, has_aux=True))(*args)
        assert_exact(module, result, image, text)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_all_pairs_of_other_devices_are_negatives(module, implementation):
    """With one pair on each of 8 devices, a softmax over local negatives would be 0."""
    image, text = pairs(8)
    mesh, *embeddings = on_devices(8, image, text)
    one = run(module, implementation, (image, text, SCALE, bias(module)))
    many = run(module, implementation, (*embeddings, SCALE, bias(module)), mesh=mesh)
    assert many[0][0] == pytest.approx(float(one[0][0]), rel=1e-6) and one[0][0] > 1e-3


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_one_pair_alone(module, implementation):
    image, text = pairs(1)
    (value, _), gradients = run(module, implementation, (image, text, SCALE, bias(module)))
    assert all(np.isfinite(x).all() for x in (value, *gradients))


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_bfloat16_embeddings_are_computed_in_float32(module, implementation):
    image, text = (x.astype(jnp.bfloat16) for x in pairs(24))
    (value, _), gradients = run(module, implementation, (image, text, SCALE, bias(module)))
    assert value.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
    exact = getattr(oracles, module.__name__.rpartition('.')[2])(
        *(x.astype(np.float32) for x in (image, text)), SCALE
    )
    if bias(module) is None:
        assert value == pytest.approx(exact[0][0], rel=2e-6)


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_accuracy_counts_positives_that_win_and_ties_as_wrong(module, implementation):
    image = jnp.eye(4)
    text = image.at[1].set(image[0])  # text 1 looks like text 0, and image 1 has no text
    _, metrics = module.loss(
        image, text, jnp.float32(1), implementation=implementation, block_size=3
    )
    # Image 0 ties between texts 0 and 1; images 2 and 3 win; image 1 scores 0 everywhere.
    assert metrics['accuracy/image_to_text'] == 0.5
    # Text 0 finds image 0, text 1 finds image 0 instead of its own, 2 and 3 win.
    assert metrics['accuracy/text_to_image'] == 0.75


@pytest.mark.parametrize(('module', 'implementation'), LOSSES)
def test_wrong_arguments_are_refused(module, implementation):
    image, text = pairs(6)
    with pytest.raises(ValueError, match="Did you mean 'dense'"):
        module.loss(image, text, SCALE, implementation='dens')
    if implementation != 'dense':
        loss = functools.partial(module.loss, image, text, SCALE, implementation=implementation)
        with pytest.raises(ValueError, match=r'6 pairs is not a multiple of the 8 devices'):
            loss(mesh=sharding.make_mesh(jax.devices()))
        with pytest.raises(ValueError, match=r'block_size is 0; expected at least 1'):
            loss(block_size=0)


def compiled(module, implementation, devices, local, d, block_size=512):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    split, same = sharding.over_batch(mesh), sharding.replicated(mesh)
    embeddings = jax.ShapeDtypeStruct((devices * local, d), jnp.float32, sharding=split)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=same)
    loss = functools.partial(
        module.loss, implementation=implementation, mesh=mesh, block_size=block_size
    )
    grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    out = (same, same), (split, split, same)
    return jax.jit(grad, out_shardings=out).lower(embeddings, embeddings, scale).compile()


@pytest.mark.usefixtures('optimized')
@pytest.mark.parametrize('module', MODULES)
def test_memory_and_collectives(module):
    local, d, block_size = 4096, 768, 256

    def scratch(*args):
        program = compiled(module, *args)
        return program.memory_analysis().temp_size_in_bytes, program.as_text()

    embeddings_size, block = 4 * local * d, 4 * block_size * local  # bytes
    ring, text = scratch('ring', 8, local, d, block_size)
    assert ring <= 6 * embeddings_size + block
    assert ' all-gather(' not in text and ' all-gather-start(' not in text
    # Whatever the number of devices.
    assert scratch('ring', 2, local, d, block_size)[0] == pytest.approx(ring, rel=0.01)
    gather, text = scratch('gather', 8, local, d)
    assert gather <= 4 * local * 8 * local / 2
    gathers = [x for x in text.splitlines() if ' all-gather(' in x and f',{d}]' in x]
    assert len(gathers) == 1
    assert scratch('gather', 1, 65536, 512)[0] < 2e9


@pytest.mark.parametrize('module', MODULES)
@pytest.mark.parametrize('implementation', ['gather', 'ring'])
def test_flops(module, implementation):
    """8 b B d per device: logits twice, and the gradients of images and texts."""
    devices, local, d = 8, 512, 64
    mesh = sharding.make_mesh(jax.devices())
    embeddings = jax.ShapeDtypeStruct((devices * local, d), jnp.float32)
    loss = functools.partial(module.loss, implementation=implementation, mesh=mesh, block_size=128)
    grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    flops = hlo.flops(jax.make_jaxpr(grad)(embeddings, embeddings, jnp.float32(1)).jaxpr)
    assert 7.9 < flops.total() / devices / (local * (devices * local) * d) < 8.5
