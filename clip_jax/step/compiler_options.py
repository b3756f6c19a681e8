"""Options of XLA for the program of a training step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from clip_jax import lookup
from clip_jax.runtime import messages

AUTO = 'auto'
_EXPECTED = 'expected auto, NAME=VALUE of XLA, or several of these separated by spaces'
_BACKENDS = ('cpu', 'gpu', 'tpu')
_LEVELED = ('optimization_level', 'memory_fitting_level')
_LEVELS = {'O0': 9, 'O1': 19, 'O2': 29, 'O3': 39}  # XLA's numbers for them
_VALUES = {'true': True, 'false': False}  # JAX does not pass them as text


def parse(text: str, device: jax.Device, count: int) -> dict[str, Any]:
    """Returns the compiler options that a config asks for, and has XLA check them.

    Args:
        text: `auto`, `NAME=VALUE`, or several of these separated by spaces; later ones win.
        device: a device of the kind that the program is for; it need not be attached.
        count: the number of devices of the program.

    Raises:
        ValueError: an option that XLA does not know or that this kind of device ignores, or a value
            that it does not take.
    """
    options = {}
    for word in text.split():
        if word == AUTO:
            options |= automatic(device.platform, count)
            continue
        name, equals, value = word.removeprefix('--').partition('=')
        if not equals or not name:
            raise ValueError(f'compiler_options: {messages.shown(word)}: {_EXPECTED}')
        for backend in _BACKENDS:
            if name.startswith(f'xla_{backend}_') and backend != device.platform:
                raise ValueError(
                    f'compiler_options: {name} has no effect here, where devices are '
                    f'{device.platform}; leave it out'
                )
        if name in _LEVELED:
            options[name] = _LEVELS[lookup.check(value, _LEVELS, what=f'compiler_options: {name}')]
        else:
            options[name] = _VALUES.get(value.lower(), value)
    if options:
        _check(options, device)
    return options


def automatic(platform: str, count: int) -> dict[str, Any]:
    """Returns the options that `auto` stands for on a number of devices of a platform."""
    if platform == 'gpu' and count > 1:
        # Overlaps collectives with computation. XLA does so by itself where it has a model of the
        # GPU's network (H100, B200), and not on others (A100).
        return {'xla_gpu_enable_latency_hiding_scheduler': True}
    if platform == 'cpu':
        # Vectors as wide as AVX-512 has them, not half; and operations in an order that finds their
        # inputs in the caches, not one that lets as many as possible run side by side.
        return {
            'xla_cpu_prefer_vector_width': 512,
            'xla_cpu_enable_concurrency_optimized_scheduler': False,
        }
    return {}


def _check(options: dict[str, Any], device: jax.Device) -> None:
    """Compiles next to nothing with the options."""
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(number).compile()
    except (jax.errors.JaxRuntimeError, TypeError) as error:
        reason = str(error).partition('\n')[0].removeprefix('INVALID_ARGUMENT: ')
        if isinstance(error, TypeError):
            reason = f'a value of the wrong type in {options}'
        raise ValueError(f'compiler_options: {reason.rstrip(".")}; see docs/speed.md') from error
