"""One training step on a global batch: a pure function of state and batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax import sharding
from clip_jax.data import preprocess
from clip_jax.models import clip, layers
from clip_jax.step import ema, grad_cache, lora, projections, rules, skip_updates
from clip_jax.step.captions import Captioning
from clip_jax.step.ema import Average
from clip_jax.step.optimizer import Optimizer
from clip_jax.step.state import TrainState, optimizer_axes
from clip_jax.step.teachers import Teachers

# Metrics of a step that the training loop reads and does not write.
STOP, CONSECUTIVE_SKIPS = 'stop', 'consecutive'


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: clip.CLIP,
    loss: Callable,
    optimizer: Optimizer,
    normalize: Callable[[jax.Array], jax.Array],
    microbatches: int = 1,
    spike: float = 0.0,
    shard_optimizer: bool = False,
    average: Average | None = None,
    captions_per_image: int = 1,
    teachers: Teachers | None = None,
    lora_scales: Mapping[str, float] | None = None,
    captioning: Captioning | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update on a global batch.

    Args:
        state: the training state.
        batch: {'image': uint8 [B, H, W, 3] or Patches, 'tokens': int32 [B, L]}; or tokens int32 [B,
            K, L] of K texts of each image, captions, then hard negatives. 'stored': see
            Teachers.targets.
        model: the model.
        loss: (image, text, scale, bias) -> (value, metrics), as build.loss makes it; with hard
            negatives it also takes `negatives`.
        optimizer: the optimizer, which also says what is trained.
        normalize: uint8 images -> float images.
        microbatches: the number of parts in which the batch is embedded (see grad_cache).
        spike: skip updates whose loss is more than this number of standard deviations above the
            recent losses; 0: never (see skip_updates).
        shard_optimizer: whether gradients and the optimizer's state are sharded over `data` too, so
            that each device computes a part of the update (ZeRO-1, arXiv 1910.02054).
        average: how the moving average of the parameters is updated; None: there is none.
        captions_per_image: the number of texts of an image that are its positives.
        teachers: models that the student learns from; their variables are `state.teachers`.
        lora_scales: the factors of adapters by tower (lora.scales); None: there are none.
        captioning: how the captioning loss is added; None: the model has no caption decoder.

    Returns:
        The next state, and scalar metrics.

    Raises:
        ValueError: while it is traced, if the batch has fewer texts than `captions_per_image`.
    """
    loss = _taught(loss, teachers, state, batch, microbatches)
    loss = _with_texts(loss, batch['tokens'].shape, captions_per_image)
    loss = captioning.added(loss) if captioning else loss
    logical_axes = lora.logical_axes(projections.logical_axes(clip.logical_axes(model)))
    trained, frozen = optimizer.split(state.params)
    batch = {'image': batch['image'], 'tokens': batch['tokens']}
    batch['example_index'] = jnp.arange(len(batch['image']), dtype=jnp.int32)
    value, metrics, buffers, grads = grad_cache.value_and_grad(
        _embedder(state, frozen, model, optimizer, normalize, lora_scales, captioning),
        _others(model, frozen),
        jax.named_scope('loss')(loss),
        lambda grads: sharding.constrain_tree(grads, logical_axes, over_data=shard_optimizer),
        trained,
        state.buffers,
        batch,
        microbatches=microbatches,
    )
    grads = optimizer.active(grads, state.step)
    grad_norm = optax.global_norm(grads)
    # Check buffers too: on CPU, ReLU turns a NaN into 0, but batch norm has averaged it by then.
    ok, skip_state = skip_updates.should_update(
        state.skip_state, value, grad_norm, buffers, spike=spike
    )

    def update() -> tuple:
        updates, opt_state = optimizer.update(
            grads, state.opt_state, trained, step=state.step, grad_norm=grad_norm
        )
        if shard_optimizer:
            opt_state = sharding.constrain_tree(
                opt_state, optimizer_axes(logical_axes), over_data=True
            )
            updates = sharding.constrain_tree(updates, logical_axes)  # all-gather
        params = optax.apply_updates(trained, updates)
        mean = ema.update(state.ema, params, state.step, average)
        return params, buffers, opt_state, mean

    with jax.named_scope('optimizer'):
        trained, buffers, opt_state, mean = skip_updates.apply_if(
            ok, update, (trained, state.buffers, state.opt_state, state.ema)
        )
    params = rules.merge(trained, frozen)
    metrics = {'loss': value, **metrics, 'grad_norm': grad_norm}
    metrics |= _of_state(params, skip_state)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        buffers=buffers,
        opt_state=opt_state,
        ema=mean,
        skip_state=skip_state,
    )
    return state, metrics


def _of_state(params: dict, skip_state: skip_updates.SkipState) -> dict[str, jax.Array]:
    """Metrics of the state after a step."""
    return {
        'logit_scale': params['logit_scale'],
        **{f'skipped/{kind}': skip_state[kind] for kind in skip_updates.REASONS},
        CONSECUTIVE_SKIPS: skip_state['consecutive'],
    }


def _embedder(
    state: TrainState,
    frozen: dict,
    model: clip.CLIP,
    optimizer: Optimizer,
    normalize: Callable[[jax.Array], jax.Array],
    lora_scales: Mapping[str, float] | None,
    captioning: Captioning | None,
) -> grad_cache.Embed:
    """Returns the function (trained parameters, buffers, batch) -> (embeddings, buffers)."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    # A locked tower embeds as in an evaluation: no dropout, and no new statistics.
    locked = tuple(tower for tower in rules.TOWERS if optimizer.locked(tower))

    def embed(params: dict, buffers: dict, part: dict) -> tuple[tuple, Any]:
        every, _ = projections.split(rules.merge(params, frozen))
        every = lora.merge(every, lora_scales or {})
        every = layers.cast(every, model.dtype, clip.logical_axes(model))
        found: Any
        found, updated = model.apply(
            {'params': every, **buffers},
            jax.named_scope('normalize')(normalize)(part['image']),
            part['tokens'],
            train=True,
            locked=locked,
            example_index=part['example_index'],
            rngs={'dropout': key},
            mutable=[*buffers],
            **(captioning.call if captioning else {}),
        )
        return found if captioning else found[:2], updated

    return embed


def _others(model: clip.CLIP, frozen: dict) -> Callable[[dict], tuple]:
    """Returns the function from trained parameters to what a loss takes besides embeddings: the
    factor and the bias of similarities, and the projections to teachers if there are some.
    """

    def others(params: dict) -> tuple:
        own, projected = projections.split(rules.merge(params, frozen))
        found: Any = model.apply({'params': own}, method='scale_and_bias')
        return (*found, projected) if projected else found

    return others


def _taught(
    loss: Callable, teachers: Teachers | None, state: TrainState, batch: dict, microbatches: int
) -> Callable:
    """Returns the loss with the teachers' losses of this batch added, if there are teachers."""
    if teachers is None:
        return loss
    with jax.named_scope('teachers'):
        targets = teachers.targets(state.teachers, batch, microbatches)
    return teachers.distilled(loss, targets)


def _with_texts(loss: Callable, tokens: tuple[int, ...], captions: int) -> Callable:
    """Returns the loss of embeddings of tokens [B, L] or [B, K, L]."""
    texts = tokens[1] if len(tokens) == 3 else 1
    if captions > texts:
        raise ValueError(
            f'data.captions_per_image is {captions}, but the batch has tokens {[*tokens]}; '
            f'expected [B, K, L] with K, the number of texts of an image, of at least {captions}'
        )
    if len(tokens) == 2:
        return loss

    def split(
        image: jax.Array, text: jax.Array, *others: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        positives = text[:, :captions] if captions > 1 else text[:, 0]
        negatives = {'negatives': text[:, captions:]} if texts > captions else {}
        return loss(image, positives, *others, **negatives)

    return split


def bind_step(
    model: clip.CLIP,
    loss: Callable,
    optimizer: Optimizer,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    microbatches: int,
    spike: float = 0.0,
    shard_optimizer: bool = False,
    average: Average | None = None,
    captions_per_image: int = 1,
    teachers: Teachers | None = None,
    lora_scales: Mapping[str, float] | None = None,
    captioning: Captioning | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Binds the arguments of `train_step` other than state and batch.

    Args:
        mean: the mean that is subtracted from the pixels of red, green and blue.
        std: the standard deviation that they are divided by.
        model, loss, optimizer, microbatches, spike, shard_optimizer, average,
            captions_per_image, teachers, lora_scales, captioning: see `train_step`.
    """
    return functools.partial(
        train_step,
        model=model,
        loss=loss,
        optimizer=optimizer,
        normalize=functools.partial(preprocess.normalize, mean=mean, std=std),
        microbatches=microbatches,
        spike=spike,
        shard_optimizer=shard_optimizer,
        average=average,
        captions_per_image=captions_per_image,
        teachers=teachers,
        lora_scales=lora_scales,
        captioning=captioning,
    )


def with_stop(step: Callable) -> Callable:
    """Adds an all-reduced stop flag to a step, so that hosts agree on when to stop at no cost.

    Args:
        step: (state, batch) -> (state, metrics).

    Returns:
        (state, batch, stop) -> (state, metrics) with `stop`, int32 [devices], the stop reason of
        each device's host, 0 for none; metrics[STOP] is the maximum.
    """

    def step_with_stop(
        state: TrainState, batch: dict[str, jax.Array], stop: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = step(state, batch)
        return state, {**metrics, STOP: jnp.max(stop)}

    step_with_stop.__name__ = train_step.__name__  # the name in profiles and caches
    return step_with_stop
