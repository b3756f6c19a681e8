"""AdamW with linear warmup and cosine decay, gradient clipping, and a bound on the logit scale."""

import math

import jax
import jax.numpy as jnp
import optax

MAX_LOGIT_SCALE = math.log(100)  # updates are clipped to it (arXiv 2103.00020, section 2.5)
# Parameters with weight decay: all but gains, biases and the logit scale (arXiv 2103.00020, section
# 2.5).
DECAYED = ('kernel', 'embedding', 'class_embedding', 'position_embedding', 'probe')


def warmup_cosine(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Makes a learning rate schedule: linear warmup from 0, then cosine decay to 0.

    Args:
        peak: the learning rate at the end of the warmup.
        warmup_steps: steps of the warmup.
        total_steps: steps of the training, warmup included.

    Returns:
        step -> learning rate.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f'optimizer: warmup_steps is {warmup_steps}; '
            f'expected at least 0 and less than total_steps {total_steps}'
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    grad_clip_norm: float,
) -> optax.GradientTransformationExtraArgs:
    """Makes the AdamW optimizer (arXiv 1711.05101).

    Args:
        schedule: step -> learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of the parameters in DECAYED; multiplied by the learning rate.
        grad_clip_norm: maximum global norm of the gradient; 0: not clipped.
    """
    chain = optax.chain(
        clip_by_global_norm(grad_clip_norm) if grad_clip_norm else optax.identity(),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
        bound_logit_scale(),
    )
    return optax.with_extra_args_support(chain)


def clip_by_global_norm(maximum: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients whose global norm exceeds `maximum` down to it.

    `update` takes the norm, if it is known, as `grad_norm`.

    It multiplies by one factor, where optax's divides each number by the norm: a compiler then does
    so where the gradients are read, and writes no clipped gradients to memory.
    """

    def update(updates, state, params=None, *, grad_norm=None, **others):
        del params, others
        norm = optax.global_norm(updates) if grad_norm is None else grad_norm
        factor = jnp.minimum(1, maximum / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    # Optax does not name the argument.
    # pyrefly: ignore[bad-argument-type]
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(params: dict) -> dict:
    """Returns a tree of booleans: whether a parameter has weight decay."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def bound_logit_scale(maximum: float = MAX_LOGIT_SCALE) -> optax.GradientTransformation:
    """Clips the update of the parameter `logit_scale`, so that it stays at most `maximum`."""

    def update(updates, state, params):
        def bound(path, step, value):
            if path[-1].key != 'logit_scale':
                return step
            return jnp.minimum(value + step, maximum) - value

        return jax.tree.map_with_path(bound, updates, params), state

    # Optax has updates whose `params` is optional; this one needs them.
    # pyrefly: ignore[bad-argument-type]
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
