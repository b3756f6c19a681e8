"""The optimizer: AdamW with warm-up and cosine decay, gradient clipping, and the bound on the logit
scale.
"""

import jax
import jax.numpy as jnp
import optax

from clip_jax.models.clip import MAX_LOGIT_SCALE

# Weight decay pulls only on what multiplies: norms, biases and the logit scale are left alone
# (arXiv 2103.00020, section 2.5).
DECAYED = ('kernel', 'embedding', 'class_embedding', 'position_embedding', 'probe')


def warmup_cosine(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak`, then half a cosine to 0 at `total_steps`."""
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
) -> optax.GradientTransformation:
    """Returns AdamW (arXiv 1711.05101) on gradients of global norm at most `grad_clip_norm` (0: not
    clipped).
    """
    return optax.chain(
        optax.clip_by_global_norm(grad_clip_norm) if grad_clip_norm else optax.identity(),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
        bound_logit_scale(),
    )


def decay_mask(params: dict) -> dict:
    """Says of each parameter whether weight decay applies to it: a tree of booleans."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def bound_logit_scale(maximum: float = MAX_LOGIT_SCALE) -> optax.GradientTransformation:
    """Shortens the update of the parameter `logit_scale` so that it does not pass `maximum`."""

    def update(updates, state, params):
        def bound(path, step, value):
            if path[-1].key != 'logit_scale':
                return step
            return jnp.minimum(value + step, maximum) - value

        return jax.tree.map_with_path(bound, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
