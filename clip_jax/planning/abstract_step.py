"""The train step of a config with abstract arguments: shapes and shardings, no arrays."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import build, sharding
from clip_jax.data import budgets, preprocess
from clip_jax.models import clip
from clip_jax.planning import hlo
from clip_jax.step import (
    captions,
    compiler_options,
    ema,
    lora,
    projections,
    rules,
    state,
    train_step,
)
from clip_jax.step.optimizer import Optimizer
from clip_jax.training import config_schema, stages, teachers


@dataclasses.dataclass
class Tokens:
    """The sizes of a tokenizer whose vocabulary has not been trained yet."""

    vocab_size: int
    context_length: int
    eot_id: int = 2


class Step(NamedTuple):
    """The train step of a config with its parts, and its abstract arguments with shardings."""

    function: Callable
    model: clip.CLIP
    optimizer: Optimizer
    mesh: Mesh
    state: state.TrainState
    batch: dict[str, Any]
    compiler_options: dict[str, Any]

    def jitted(self) -> Any:
        """The step as a run compiles it."""
        return jax.jit(self.function, donate_argnums=0, compiler_options=self.compiler_options)


def step_of(
    config: ConfigDict,
    devices: list,
    dtype: str,
    *,
    read: Callable[[str], tuple[dict, dict]] | None = None,
) -> Step:
    """Builds the train step of a config for devices, real or not; no array is created.

    Args:
        config: the training config.
        devices: the devices.
        dtype: the compute dtype.
        read: path -> the card of a checkpoint and the shapes of its variables, for teachers that
            embed each batch.

    Raises:
        ValueError: a value of the config is not usable, or there is no `read` where it is needed.
    """
    stages.check_none(config)
    config_schema.check(config)
    mesh = sharding.make_mesh(devices, **build.given(config.mesh, 'shard_optimizer'))
    sharding.check_batch(config.batch_size, config.microbatches, mesh)
    card = _architecture(config)
    model = build.model(card, dtype, **build.execution(config.model))
    taught = teachers.prepare(
        config.distillation, dtype, {'model': card}, mesh, lambda path, _: (read or _refuse)(path)
    )
    variables, scales = _with_adapters(config, model)
    params = variables['params'] | projections.shapes(taught.projected)
    optimizer = build.optimizer(config.optimizer, params, config.total_steps)
    average = ema.make(**config.ema)
    function = train_step.bind_step(
        model,
        build.loss(
            config.loss,
            mesh,
            captions=config.data.captions_per_image,
            hard_negatives=config.data.hard_negatives,
        ),
        optimizer,
        mean=preprocess.CLIP_MEAN,
        std=preprocess.CLIP_STD,
        microbatches=config.microbatches,
        spike=config.skip_updates.loss_spike_std,
        shard_optimizer=config.mesh.shard_optimizer,
        average=average,
        captions_per_image=config.data.captions_per_image,
        teachers=taught.teachers,
        lora_scales=scales,
        captioning=captions.make(config.captioning, model, teachers=taught.teachers is not None),
    )
    shapes = state.abstract_state(
        model,
        optimizer,
        mesh,
        variables=variables,
        shard_optimizer=config.mesh.shard_optimizer,
        averaged=average is not None,
        projected=taught.projected,
    )
    shapes = dataclasses.replace(shapes, teachers=taught.variables)
    batch = _batch(config, card, mesh, {k: x.width for k, x in taught.stored.items()})
    options = compiler_options.parse(config.compiler_options, mesh.devices.flat[0], mesh.size)
    return Step(function, model, optimizer, mesh, shapes, batch, options)


def _refuse(path: str) -> tuple[dict, dict]:
    raise ValueError(
        f'distillation: this step has no teachers that embed each batch ({path}); leave them out'
    )


def _with_adapters(config: ConfigDict, model: clip.CLIP) -> tuple[dict[str, Any], dict[str, float]]:
    """The shapes of all variables, and the factors of adapters."""
    shapes = clip.shapes(model)
    found = lora.resolve(config.lora, shapes['params'], clip.logical_axes(model))
    if found is None:
        return shapes, {}
    params = {**shapes['params'], rules.LORA: found.abstract()}
    return {**shapes, 'params': params}, lora.scales(found.towers)


def _architecture(config: ConfigDict) -> dict[str, Any]:
    if config.init_from:
        raise ValueError('init_from: a plan is of the architecture that config.model describes')
    tokens = config.tokenizer
    if tokens.name == 'sentencepiece' and not tokens.path:
        if tokens.vocab_size is None:
            raise ValueError('tokenizer sentencepiece: vocab_size must be given')
        tokenizer = Tokens(tokens.vocab_size, tokens.context_length)
    else:
        # pyrefly: ignore[bad-argument-type]  # only a new vocabulary is trained on captions
        tokenizer = build.tokenizer(tokens, ())
    return build.architecture(config.model, tokenizer, loss=config.loss.name)


def _batch(
    config: ConfigDict, card: dict[str, Any], mesh: Mesh, stored: dict[str, int]
) -> dict[str, Any]:
    """The shapes of a batch; `stored` are the dimensions of stored embeddings by teacher."""
    model = clip.from_card(card)
    drawn = budgets.of_model(
        model.image,
        config.seed,
        config.data.budgets,
        config.data.patch_sizes,
        config.preprocess.get('max_patches'),
    )
    most, patch_size = drawn.largest if drawn else (None, None)
    images, tokens = model.example_inputs(
        config.batch_size, max_patches=most, patch_size=patch_size
    )
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.over_batch(mesh))
    total = build.captions(config.data).total
    several = (total,) if total > 1 else ()
    batch = {
        'image': jax.tree.map(lambda x: rows(x.shape, x.dtype), images),
        'tokens': rows((config.batch_size, *several, tokens.shape[1]), jnp.int32),
    }
    embeddings = {
        name: {side: rows((config.batch_size, width), jnp.float32) for side in projections.SIDES}
        for name, width in stored.items()
    }
    return {**batch, 'stored': embeddings} if embeddings else batch


def local_mib(tree: Any) -> float:
    """MiB of a tree of shapes on one device."""
    sizes = [
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    ]
    return sum(sizes) / hlo.MIB


def forward_flops(model: clip.CLIP, images: Any) -> int:
    """FLOPs of the forward pass of both encoders, and of a decoder, for the images of a batch and a
    text of each, by the architecture alone.
    """
    model = clip.from_card(clip.to_card(model))  # a fused attention hides its products
    length = model.text.context_length

    def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        normalized = jnp.float32 if x.dtype == jnp.uint8 else x.dtype
        return jax.ShapeDtypeStruct((1, *x.shape[1:]), normalized)

    # With intermediates the last block computes all tokens, as MFU counts them.
    mutable = ['batch_stats', 'intermediates']
    method = '__call__' if model.decoder is None else clip.captioned
    forward = functools.partial(model.apply, train=True, mutable=mutable, method=method)
    jaxpr = jax.make_jaxpr(forward)(
        clip.shapes(model),
        jax.tree.map(one, images),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        rngs={'dropout': jax.random.key(0)},
    ).jaxpr
    return jax.tree.leaves(images)[0].shape[0] * sum(hlo.flops(jaxpr).values())
