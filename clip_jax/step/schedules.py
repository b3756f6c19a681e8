"""Learning rate schedules: a linear warmup from 0, then one of SCHEDULES."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from clip_jax import lookup

WSD_SHAPES = ('linear', 'cosine', 'sqrt')


def make(
    options: Mapping[str, Any], *, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Makes a learning rate schedule: linear warmup from 0, then what `name` says.

    Args:
        options: `name`, a key of SCHEDULES, and options of that schedule.
        peak: the learning rate at the end of the warmup.
        warmup_steps: steps of the warmup.
        total_steps: steps of the training, warmup included.

    Returns:
        step -> learning rate.

    Raises:
        ValueError: the name, an option or a number is not usable.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f'optimizer: warmup_steps is {warmup_steps}; '
            f'expected at least 0 and less than total_steps {total_steps}'
        )
    given = {k: v for k, v in options.items() if v is not None and k != 'name'}
    name = lookup.check(str(options.get('name')), SCHEDULES, what='optimizer.schedule: name')
    function, defaults = SCHEDULES[name]
    for key in given:
        lookup.check(key, defaults, what=f'optimizer.schedule {name}: option')
    decay = function(total_steps - warmup_steps, warmup_steps, **{**defaults, **given})
    return _warmed_up(decay, peak, warmup_steps)


def _warmed_up(decay: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    """A schedule; `decay` maps steps since the warmup to a factor of the peak."""

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        rising = step / max(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, rising, decay(step - warmup_steps))

    return schedule


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f'optimizer.schedule: {name} is {value}; expected 0 to 1')
    return value


def cosine(steps: int, warmup_steps: int, *, final: float) -> optax.Schedule:
    """Half a cosine from 1 to `final` (arXiv 1608.03983, section 3, without restarts)."""
    del warmup_steps
    _fraction('final', final)

    def decay(step: Any) -> Any:
        done = jnp.minimum(step / steps, 1)
        return final + (1 - final) * (1 + jnp.cos(jnp.pi * done)) / 2

    return decay


def linear(steps: int, warmup_steps: int, *, final: float) -> optax.Schedule:
    """A straight line from 1 to `final`."""
    del warmup_steps
    _fraction('final', final)
    return lambda step: 1 - (1 - final) * jnp.minimum(step / steps, 1)


def constant(steps: int, warmup_steps: int) -> optax.Schedule:
    """Always 1."""
    del steps, warmup_steps
    return jnp.ones_like


def rsqrt(
    steps: int, warmup_steps: int, *, timescale: float, cooldown_steps: int
) -> optax.Schedule:
    """The reciprocal square root of time (arXiv 2106.04560, section 3.3), with a linear cooldown.

    It is ``sqrt(timescale / (timescale + step))``, and falls to 0 over the last `cooldown_steps`.
    """
    del warmup_steps
    if timescale <= 0:
        raise ValueError(f'optimizer.schedule: timescale is {timescale}; expected more than 0')
    _within('cooldown_steps', cooldown_steps, steps)

    def decay(step: Any) -> Any:
        left = jnp.clip((steps - step) / max(cooldown_steps, 1), 0, 1) if cooldown_steps else 1
        return jnp.sqrt(timescale / (timescale + step)) * left

    return decay


def wsd(
    steps: int, warmup_steps: int, *, decay_steps: int | None, shape: str, final: float
) -> optax.Schedule:
    """Warmup, stable, decay (arXiv 2404.06395, section 4): 1 until the last `decay_steps`.

    `decay_steps` is a tenth of all steps by default, and 0 for a trunk from which decays branch
    off. `shape` is that of the decay: 'linear', 'cosine', or 'sqrt' for ``1 - sqrt(t)`` (arXiv
    2405.18392).
    """
    if decay_steps is None:
        decay_steps = (steps + warmup_steps) // 10
    _within('decay_steps', decay_steps, steps)
    _fraction('final', final)
    lookup.check(shape, WSD_SHAPES, what='optimizer.schedule wsd: shape')

    def decay(step: Any) -> Any:
        if not decay_steps:
            return jnp.ones_like(step)
        done = jnp.clip((step - (steps - decay_steps)) / decay_steps, 0, 1)
        left = {
            'linear': 1 - done,
            'cosine': (1 + jnp.cos(jnp.pi * done)) / 2,
            'sqrt': 1 - jnp.sqrt(done),
        }[shape]
        return final + (1 - final) * left

    return decay


def _within(name: str, value: int, steps: int) -> None:
    if not 0 <= value <= steps:
        raise ValueError(
            f'optimizer.schedule: {name} is {value}; expected 0 to {steps}, the steps after the '
            'warmup'
        )


# name -> (function, defaults of its options)
SCHEDULES: dict[str, tuple[Callable[..., optax.Schedule], dict[str, Any]]] = {
    'cosine': (cosine, {'final': 0.0}),
    'linear': (linear, {'final': 0.0}),
    'constant': (constant, {}),
    'rsqrt': (rsqrt, {'timescale': 10_000, 'cooldown_steps': 0}),
    'wsd': (wsd, {'decay_steps': None, 'shape': 'linear', 'final': 0.0}),
}
