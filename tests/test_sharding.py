"""Training on any mesh equals training on one device; logical axes become mesh axes."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_training import (
    CARD,
    CARDS,
    assert_same,
    batch,
    make_optimizer,
    on_one_device,
    setup,
    steps,
)

from clip_jax import build, sharding
from clip_jax.models import clip, presets
from clip_jax.step import state

MESHES = {
    '8 data': ('ring', {}),
    '2x4 data x fsdp': ('gather', {'fsdp': 4}),
    '2x2x2 with tensor': ('ring', {'fsdp': 2, 'tensor': 2}),
    '2 slices of 2x2': ('gather', {'slices': 2, 'fsdp': 2, 'shard_optimizer': True}),
    '8, optimizer sharded': ('gather', {'shard_optimizer': True}),
}


QUICK = [
    ('8 data', 'softmax', 'vit'),
    ('2x4 data x fsdp', 'sigmoid', 'vit'),
    ('2x2x2 with tensor', 'softmax', 'vit'),
    ('2 slices of 2x2', 'softmax', 'vit'),
]
REST = [x for x in itertools.product(MESHES, ['softmax', 'sigmoid'], CARDS) if x not in QUICK]


@pytest.mark.parametrize(
    ('mesh', 'loss', 'encoder'),
    [*QUICK, *(pytest.param(*x, marks=pytest.mark.slow) for x in REST)],
)
def test_any_mesh_trains_as_one_device(mesh, loss, encoder):
    implementation, options = MESHES[mesh]
    loss_config = {'name': loss, 'implementation': implementation}
    result = steps(8, encoder, loss=loss_config, **options)
    assert_same(result, on_one_device(encoder, loss))


def test_the_state_stays_sharded_and_its_initial_values_do_not_depend_on_the_mesh():
    one, _, _ = setup(1)
    _, step, put = setup(8, fsdp=4, tensor=2)
    mesh, model = sharding.make_mesh(jax.devices(), fsdp=4, tensor=2), build.model(CARD)
    eight = state.create(model, make_optimizer(model), seed=0, mesh=mesh)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(same, one, eight)
    after, _ = step(eight, put(batch(0)))
    kernel = after.params['image']['transformer']['block_0']['mlp']['in']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) == (32 // 4, 64 // 2)
    moment = after.opt_state[1][0].mu['image']['transformer']['block_0']['mlp']['in']['kernel']
    assert moment.sharding.is_equivalent_to(kernel.sharding, 2)


def test_at_most_a_hundredth_of_a_model_is_replicated():
    """ViT-B/16 with AdamW over 8: parameters and optimizer state."""
    mesh = sharding.make_mesh(jax.devices(), fsdp=8)
    model = build.model(presets.architecture('ViT-B-16'))
    optimizer = make_optimizer(model)
    params = clip.shapes(model)['params']
    tree = params, jax.eval_shape(optimizer.init, params)
    shardings = sharding.of_tree(tree, mesh, clip.logical_axes(model))
    whole = sum(x.size for x in jax.tree.leaves(tree))
    local = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))), tree, shardings)
    assert whole == pytest.approx(3 * 149.62e6, rel=1e-3)
    assert sum(jax.tree.leaves(local)) <= 1.15 / 8 * whole
    unsharded = jax.tree.map(lambda x, n: x.size if x.size == n else 0, tree, local)
    assert sum(jax.tree.leaves(unsharded)) < 0.01 * whole


SIZES = {'slices': 1, 'data': 2, 'fsdp': 4, 'tensor': 2}


@pytest.mark.parametrize(
    ('axes', 'shape', 'expected'),
    [
        (('width', 'mlp'), (32, 64), ('fsdp', 'tensor')),
        (('batch', 'length', 'features'), (16, 5, 32), (('slices', 'data', 'fsdp'), None, None)),
        (('batch', 'length', 'features'), (12, 5, 32), (None, None, None)),  # 12 is not 8 x n
        (('width', 'qkv', 'heads', 'head_dim'), (32, 3, 3, 8), ('fsdp', None, None, None)),
        (('width', 'mlp'), (30, 64), (None, 'tensor')),
        (('vocab', 'width'), (400, 30), ('fsdp', None)),  # in place of the width
        ((None,), (7,), (None,)),
    ],
)
def test_logical_axes_become_mesh_axes(axes, shape, expected):
    assert sharding.spec(axes, shape, SIZES) == jax.sharding.PartitionSpec(*expected)


def test_logical_axes_without_a_rule_and_impossible_meshes_are_refused():
    with pytest.raises(ValueError, match=r"no rule for .*'widht'; there are batch, width"):
        sharding.spec(('widht',), (3,), SIZES)
    with pytest.raises(ValueError, match=r'axes .*width.* for an array of shape \(3, 4\)'):
        sharding.spec(('width',), (3, 4), SIZES)
    with pytest.raises(ValueError, match=r'fsdp 3 x tensor 1 does not divide the 8 devices'):
        sharding.make_mesh(jax.devices(), fsdp=3)
    with pytest.raises(ValueError, match=r'tensor is 0'):
        sharding.make_mesh(tensor=0)


def test_constraints_hold_on_a_mesh_and_are_nothing_without_one():
    mesh = sharding.make_mesh(jax.devices(), fsdp=4, tensor=2)

    @jax.jit
    def constrained(x):
        return sharding.constrain(x, 'width', 'mlp')

    x = jnp.zeros((32, 64))
    assert constrained(x).sharding.is_fully_replicated
    with jax.set_mesh(mesh):
        assert constrained(x).sharding.shard_shape(x.shape) == (8, 32)


@pytest.mark.parametrize(
    'name',
    [
        'ViT-B-32',
        'RN50',
        'ViT-B-16-SigLIP',
        'ViT-L-14-CLIPA',
        'convnext_large_d',
        'EVA02-B-16',
        'PE-Core-T-16-384',
        'roberta-ViT-B-32',
        'nllb-clip-base',
    ],
)
def test_every_parameter_of_every_encoder_has_logical_axes(name):
    model = clip.from_card(presets.architecture(name))
    shapes = clip.shapes(model)
    mesh = sharding.make_mesh(jax.devices(), fsdp=8)
    shardings = sharding.of_tree(shapes, mesh, clip.logical_axes(model))
    for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        large = x.ndim > 1 and x.size > 2**14
        assert not large or s.shard_shape(x.shape) != x.shape


def test_a_parameter_without_logical_axes_is_named():
    axes = clip.logical_axes(build.model(CARD))
    assert axes('params/image/position_embedding', 2) == ('length', 'width')
    assert axes('opt_state/mu/text/token_embedding/embedding', 2) == ('vocab', 'width')
    assert axes('params/image_projection/kernel', 2) == ('width', 'embed')
    for path in (
        'image/new/kernel',
        'image/token_embedding/embedding',  # the other encoder's
        'text/patch_embedding/kernel',
        'image/my_position_embedding',  # not the whole name
    ):
        with pytest.raises(ValueError, match=f'{path} with 2 axes; .* LOGICAL_AXES'):
            axes(path, 2)
    assert axes('image/new/bias', 1) == (None,)


def test_data_parallel_over_slices_and_fsdp_within_one():
    mesh = sharding.make_mesh(jax.devices(), slices=2, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {'slices': 2, 'data': 1, 'fsdp': 2, 'tensor': 2}
    assert [x.id for x in mesh.devices[0].flat] == [x.id for x in jax.devices()[:4]]


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ({'slices': 0}, 'mesh: slices is 0; expected at least 1'),
        ({'slices': 3}, 'mesh: slices 3 does not divide the 8 devices'),
        ({'slices': 4, 'fsdp': 4}, 'fsdp 4 x tensor 1 does not divide the 2 devices of each of 4'),
    ],
)
def test_impossible_slices_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(jax.devices(), **sizes)


class Tpu(NamedTuple):
    """A TPU that is not there."""

    slice_index: int
    id: int
    coords: tuple[int, ...]
    core_on_chip: int = 0
    platform: str = 'tpu'
    process_index: int = 0
    device_kind: str = 'TPU of tests'


def test_tpus_say_in_how_many_slices_they_are(monkeypatch):
    monkeypatch.setattr(sharding, 'Mesh', lambda placed, *_, **__: placed)
    tpus = [Tpu(i % 2, i, (i // 2 % 2, i // 4, 0)) for i in range(8)]
    for slices in (None, 2):
        placed = sharding.make_mesh(tpus, slices=slices, fsdp=4)
        assert placed.shape == (2, 1, 4, 1)
        assert [{x.slice_index for x in one.flat} for one in placed] == [{0}, {1}]
    with pytest.raises(ValueError, match='slices is 1; expected 2, as many as the TPUs are in'):
        sharding.make_mesh(tpus, slices=1)
    with pytest.raises(ValueError, match='slices of 4, 3 devices; expected slices of one size'):
        sharding.make_mesh(tpus[:-1])


@pytest.mark.parametrize(
    ('spec', 'shape', 'expected'),
    [
        ((None, 'tensor'), (32, 64), (('data',), 'tensor')),
        (('fsdp', 'tensor'), (32, 256), (('fsdp', 'data'), 'tensor')),
        ((None, None), (3, 64), (None, ('data',))),
        (('fsdp', None), (32, 3), (('fsdp', 'data'), None)),
        ((), (64,), ()),  # vectors are small
        ((None, None), (3, 5), (None, None)),
    ],
)
def test_the_state_of_an_optimizer_is_spread_over_data(spec, shape, expected):
    found = sharding.spread(jax.sharding.PartitionSpec(*spec), shape, SIZES)
    assert found == jax.sharding.PartitionSpec(*expected)
