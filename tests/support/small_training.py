"""Small models and batches to train them on, on any mesh."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_jax import build, lookup, sharding
from clip_jax.data import preprocess
from clip_jax.models import clip
from clip_jax.step import ema, lora, projections, rules, state
from clip_jax.step.captions import Captioning
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.teachers import Teachers
from clip_jax.step.train_step import bind_step

SMALL = {'width': 32, 'depth': 1, 'heads': 2, 'mlp_dim': 64}
TEXT = {'name': 'transformer', 'vocab_size': 80, 'context_length': 8, 'eot_id': 3, **SMALL}
VIT = {'name': 'vit', 'image_size': 16, 'patch_size': 4, 'patch_dropout': 0.5, **SMALL}
RESNET = {'name': 'resnet', 'image_size': 32, 'width': 8, 'depths': (1, 1, 1, 1), 'heads': 4}
ROPE_VIT = {**VIT, 'name': 'rope_vit', 'mlp': 'swiglu', 'inner_norm': True, 'rope': 'rows_first'}
del ROPE_VIT['patch_dropout']
CONVNEXT = {'name': 'convnext', 'image_size': 32, 'widths': (8, 8, 16, 32), 'depths': (1, 1, 1, 1)}
CONVNEXT |= {'drop_path': 0.3, 'layer_scale': 0.1}
CONVOLUTIONS = {**VIT, 'stem': 'convolutions', 'class_position': False, 'patch_dropout': 0.0}
CARD = {'image': VIT, 'text': TEXT, 'embed_dim': 16}
CARDS = {
    'vit': {
        'image': {**VIT, 'dropout': 0.2},
        'text': {**TEXT, 'dropout': 0.2},
        'embed_dim': 16,
    },
    'resnet': {'image': RESNET, 'text': TEXT, 'embed_dim': 16},
    'rope_vit': {'image': ROPE_VIT, 'text': TEXT, 'embed_dim': 16},
    'convnext': {'image': CONVNEXT, 'text': TEXT, 'embed_dim': 16, 'image_proj': 'wide_mlp'},
    'convolutions': {'image': CONVOLUTIONS, 'text': TEXT, 'embed_dim': 16},
}

OPTIMIZER = {
    'name': 'adamw',
    'learning_rate': 3e-3,
    'warmup_steps': 5,
    'schedule': {'name': 'cosine'},
    'weight_decay': 0.1,
    'grad_clip_norm': 1.0,
    'freeze': (),
    'rules': (),
    'layer_decay': {},
}


def batch(seed: int, n: int = 16, size: int = 16) -> dict[str, np.ndarray]:
    """Images of one brightness each, and texts that name it."""
    rng = np.random.default_rng(seed)
    level = rng.permutation(n)
    image = (level * (240 // n))[:, None, None, None] + rng.integers(0, 10, (n, size, size, 3))
    tokens = np.zeros((n, 8), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 2, level + 4, 3
    return {'image': image.astype(np.uint8), 'tokens': tokens}


def setup(
    devices: int,
    *,
    slices: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    shard_optimizer: bool = False,
    card: dict = CARD,
    loss: dict | None = None,
    microbatches: int = 1,
    captions: int = 1,
    learning_rate: float = 3e-3,
    optimizer: dict | None = None,
    decay: float = 0.0,
    teachers: Teachers | None = None,
    teacher_variables: dict | None = None,
    projected: dict | None = None,
    adapters: dict | None = None,
    captioning: Captioning | None = None,
    **execution: str | bool,
) -> tuple[state.TrainState, Callable, Callable]:
    """A new state on a number of devices, its step, and a function that shards a batch."""
    mesh = sharding.make_mesh(jax.devices()[:devices], slices=slices, fsdp=fsdp, tensor=tensor)
    loss = {'name': 'softmax', 'implementation': 'gather', 'block_size': 8, **(loss or {})}
    card = {**lookup.module('losses', loss['name']).INIT, **card}
    model, changes = build.model(card, **execution), optimizer or {}
    variables = with_adapters(model, adapters or {})
    of_run = (adapters or {}, projected or {}, changes)
    made = make_optimizer(model, variables, projected, learning_rate=learning_rate, **changes)
    average = ema.make(decay, True)
    step = jax.jit(
        bind_step(
            model,
            build.loss(loss, mesh, captions=captions),
            made,
            mean=preprocess.CLIP_MEAN,
            std=preprocess.CLIP_STD,
            microbatches=microbatches,
            shard_optimizer=shard_optimizer,
            average=average,
            captions_per_image=captions,
            teachers=teachers,
            lora_scales=lora.scales(adapters or {}),
            captioning=captioning,
        )
    )

    def run(state: state.TrainState, batch: dict) -> tuple[state.TrainState, dict]:
        with jax.set_mesh(mesh):
            return step(state, batch)

    shapes = state.abstract_state(
        model,
        made,
        mesh,
        variables=variables,
        shard_optimizer=shard_optimizer,
        averaged=decay > 0,
        projected=projected,
    )
    initial = jax.tree.map(
        lambda x, shape: jax.device_put(x, shape.sharding),
        _initial(json.dumps(card), json.dumps(of_run), decay > 0),
        shapes,
    )
    if teacher_variables:
        shardings = {
            name: sharding.of_tree(x, mesh, clip.logical_axes(teachers.by_name[name].model))
            for name, x in teacher_variables.items()
        }
        placed = jax.tree.map(jax.device_put, teacher_variables, shardings)
        initial = dataclasses.replace(initial, teachers=placed)
    return initial, run, functools.partial(jax.device_put, device=sharding.over_batch(mesh))


def of_model(model: clip.CLIP, adapters: dict) -> lora.Adapters | None:
    """The adapters of a model, None if the config has none."""
    return lora.resolve(adapters, clip.shapes(model)['params'], clip.logical_axes(model))


def with_adapters(model: clip.CLIP, adapters: dict) -> dict:
    """The shapes of all variables."""
    shapes, found = clip.shapes(model), of_model(model, adapters)
    more = {rules.LORA: found.abstract()} if found else {}
    return {**shapes, 'params': {**shapes['params'], **more}}


def make_optimizer(
    model: clip.CLIP, variables: dict | None = None, projected: dict | None = None, **changes: Any
) -> Optimizer:
    """The optimizer of small runs, with some keys of its config changed."""
    params = (variables or clip.shapes(model))['params'] | projections.shapes(projected or {})
    return build.optimizer({**OPTIMIZER, **changes}, params, 200)


@functools.cache
def _initial(card: str, of_run: str, averaged: bool) -> state.TrainState:
    """A new state, made once in a process: compiling the initialization takes long."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    model = clip.from_card(json.loads(card))
    adapters, projected, changes = json.loads(of_run)
    made = make_optimizer(model, with_adapters(model, adapters), projected, **changes)
    whole = None
    if adapters:
        whole = clip.init(model, jax.random.key(0))
        whole['params'][rules.LORA] = of_model(model, adapters).init(1)
    made = state.create(
        model,
        made,
        seed=0,
        mesh=mesh,
        averaged=averaged,
        variables=whole,
        projected=projected,
    )
    return jax.device_get(made)


def steps(devices: int, encoder: str, *, count: int = 20, **options: Any) -> tuple:
    """Losses of `count` steps with dropout, and the state after them."""
    # Batch normalization, and a ResNet's ReLU, amplify rounding errors.
    batch_size, rate = (64, 3e-5) if encoder in ('resnet', 'convolutions') else (32, 1e-4)
    card = CARDS[encoder]
    current, step, put = setup(devices, card=card, learning_rate=rate, **options)
    losses = []
    for i in range(count):
        data = put(batch(i, batch_size, card['image']['image_size']))
        current, numbers = step(current, data)
        losses.append(float(numbers['loss']))
    return losses, current


@functools.cache
def on_one_device(encoder: str, loss: str = 'softmax', count: int = 20) -> tuple:
    """The reference that other meshes and implementations are compared with."""
    return steps(1, encoder, loss={'name': loss, 'implementation': 'dense'}, count=count)


def assert_same(result: tuple, expected: tuple) -> None:
    """Losses agree to a relative, parameters and buffers to an absolute tolerance of 1e-5."""
    (losses, state), (expected_losses, expected_state) = result, expected
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for tree, other in (
        (state.params, expected_state.params),
        (state.buffers, expected_state.buffers),
    ):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), tree, other)
