"""One training step on a global batch: a pure function with its parts as arguments."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from clip_jax import sharding
from clip_jax.data import preprocess
from clip_jax.models import layers
from clip_jax.step import grad_cache, skip_updates
from clip_jax.step.state import TrainState

STOP, CONSECUTIVE_SKIPS = (
    'stop',
    'consecutive',
)  # numbers of a step that steer the loop and are not written


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    normalize: Callable[[jax.Array], jax.Array],
    microbatches: int = 1,
    spike: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update on a global batch, and the batch's metrics.

    `batch` is {'image': uint8 [B, H, W, 3], 'tokens': int32 [B, L]}, embedded in `microbatches`
    parts. An update that is not finite, or follows a `spike` of the loss, is not made: see
    guards.py. Pure: every part is an argument.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    batch = {**batch, 'example_index': jnp.arange(len(batch['image']), dtype=jnp.int32)}

    def embed(params: dict, buffers: dict, part: dict) -> tuple[tuple, dict]:
        (image, text, _, _), buffers = model.apply(
            {'params': layers.cast(params, model.dtype), **buffers},
            normalize(part['image']),
            part['tokens'],
            train=True,
            example_index=part['example_index'],
            rngs={'dropout': key},
            mutable=[*buffers],
        )
        return (image, text), buffers

    value, numbers, buffers, grads = grad_cache.value_and_grad(
        embed,
        lambda params: model.apply({'params': params}, method='scale_and_bias'),
        loss,
        lambda grads: sharding.constrain_tree(grads, layers.logical_axes),
        state.params,
        state.buffers,
        batch,
        microbatches=microbatches,
    )
    grad_norm = optax.global_norm(grads)
    # Buffers too: on CPU a ReLU makes 0 of NaN, after batch normalization has averaged it.
    ok, skip_state = skip_updates.should_update(
        state.skip_state, value, grad_norm, buffers, spike=spike
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params, buffers, opt_state = skip_updates.select(
        ok,
        (optax.apply_updates(state.params, updates), buffers, opt_state),
        (state.params, state.buffers, state.opt_state),
    )
    numbers = {
        'loss': value,
        **numbers,
        'logit_scale': params['logit_scale'],
        'grad_norm': grad_norm,
        **{f'skipped/{kind}': skip_state[kind] for kind in skip_updates.REASONS},
        CONSECUTIVE_SKIPS: skip_state['consecutive'],
    }
    state = TrainState(
        step=state.step + 1,
        params=params,
        buffers=buffers,
        opt_state=opt_state,
        rng=state.rng,
        skip_state=skip_state,
    )
    return state, numbers


def bind_step(
    model: nn.Module,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    microbatches: int,
    spike: float = 0.0,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `train_step` with its parts, of state and batch; images are normalized by `mean` and
    `std`.
    """
    return functools.partial(
        train_step,
        model=model,
        loss=loss,
        optimizer=optimizer,
        normalize=functools.partial(preprocess.normalize, mean=mean, std=std),
        microbatches=microbatches,
        spike=spike,
    )


def with_stop(step: Callable) -> Callable:
    """A step that also takes what each device's host wants to stop for, int32 [devices], 0 for
    nothing, and has the largest of them among its numbers: all hosts see the same, for nothing.
    """

    def step_with_stop(
        state: TrainState, batch: dict[str, jax.Array], stop: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        state, numbers = step(state, batch)
        return state, {**numbers, STOP: jnp.max(stop)}

    step_with_stop.__name__ = train_step.__name__  # as which profiles and caches know it
    return step_with_stop
