r"""Speed and memory of a config's train step on the devices that are here, with random input.

    python experiments/benchmarks/train_step.py --config=configs/clip_vit_b16.py \
        --config.batch_size=512 --vary model.remat=none,dots model.attention=xla,cudnn --torch
    taskset -c 0 python experiments/benchmarks/train_step.py --config=configs/flickr8k.py \
        --steps=2 --turns=7 --torch

MFU is 3 x the forward FLOPs of both encoders a second, over those of a matrix product timed in the
same process. --vary times every combination of values. --torch times the same step in PyTorch on
the same device in the same run: open_clip's model for a preset, else plain modules of the same
sizes. With --turns=K all take turns, K times --steps each, and a second table has the median and
range of PyTorch's time over that of the variant in the same turn; on CPU it is processor time.
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from clip_jax.planning import abstract_step

WARM_UP = 2  # runs that do not count


def timed(
    run: Callable[[], Any], steps: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of so many runs."""
    seconds = []
    for _ in range(steps):
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return seconds


def matmul_flops(steps: int) -> float:
    """FLOPs a second of a large matrix product of random numbers on one device."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == 'cpu'
    size, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: jax.block_until_ready(product(x, x)), WARM_UP + steps)
    return 2 * size**3 / statistics.median(seconds[WARM_UP:])


def prepared(step: Any) -> tuple[Any, dict[str, Any], Callable, float]:
    """A new state, a random batch, the compiled step, and how long that took."""
    import jax

    from clip_jax.step import state

    current = state.create(step.model, step.optimizer, seed=0, mesh=step.mesh)
    current = jax.device_put(current, jax.tree.map(lambda x: x.sharding, step.state))

    def data(name: str, most: int) -> jax.Array:
        shape = step.batch[name]
        draw = jax.jit(
            lambda key: jax.random.randint(key, shape.shape, 0, most).astype(shape.dtype),
            out_shardings=shape.sharding,
        )
        return draw(jax.random.key(1))

    batch = {'image': data('image', 256), 'tokens': data('tokens', 100)}
    begin = time.perf_counter()
    with jax.set_mesh(step.mesh):
        program = step.jitted().lower(current, batch).compile()
    return current, batch, program, time.perf_counter() - begin


class Variant(NamedTuple):
    """A step that can be timed."""

    run: Callable[[], Any]  # takes a step and waits for it
    batch: int
    flops: int  # of a step, for MFU
    rest: Callable[[], str]  # the last two columns of the table, known after it has run


def in_jax(config: Any) -> tuple[Variant, Any]:
    """The config's step, compiled, and its model."""
    import jax

    step = abstract_step.step_of(config, jax.devices(), config.model.dtype)
    current, batch, program, compiling = prepared(step)

    def run() -> None:
        nonlocal current
        current, numbers = program(current, batch)
        jax.block_until_ready((current, numbers))

    def rest() -> str:
        used = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
        if used is None:  # a CPU does not say
            memory = program.memory_analysis()
            used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return f'{used / 2**30:.2f} | {compiling:.1f}'

    flops = 3 * abstract_step.forward_flops(step.model, step.batch['image'])
    return Variant(run, config.batch_size, flops, rest), step.model


def in_turn(
    named: dict[str, Variant], steps: int, turns: int, clock: Callable[[], float]
) -> dict[str, list[list[float]]]:
    """Seconds of each step of each turn: name -> turns x steps."""
    for variant in named.values():
        timed(variant.run, WARM_UP)
    seconds: dict[str, list[list[float]]] = {name: [] for name in named}
    for _ in range(turns):
        for name, variant in named.items():
            seconds[name].append(timed(variant.run, steps, clock))
    return seconds


def row(name: str, variant: Variant, turns: list[list[float]], peak: float) -> str:
    """One row of the table."""
    seconds = [second for turn in turns for second in turn]
    middle = statistics.median(seconds)
    return (
        f'| {name} | {middle * 1e3:,.1f} ({min(seconds) * 1e3:,.1f} to {max(seconds) * 1e3:,.1f}) '
        f'| {variant.batch / middle:,.1f} | {variant.flops / middle / peak:.1%} '
        f'| {variant.rest()} |'
    )


def configs_of(config_path: str, vary: list[str], changes: list[str]) -> dict[str, Any]:
    """The configs of every combination of values, by what they change."""
    from clip_jax.cli import config_file

    keys = [word.partition('=')[0] for word in vary]
    values = [word.partition('=')[2].split(',') for word in vary]
    found = {}
    for chosen in itertools.product(*values):
        words = [f'{key}={value}' for key, value in zip(keys, chosen, strict=True)]
        flags = [f'--config.{word}' for word in words]
        found[' '.join(words) or 'as the config'] = config_file.read(
            config_path, [*changes, *flags]
        )
    return found


def compare(configs: dict[str, Any], steps: int, turns: int, with_torch: bool) -> None:
    """Prints a row for each config, and one for PyTorch with the first one's sizes."""
    import jax

    if with_torch and importlib.util.find_spec('torch') is None:
        raise ValueError("--torch: install PyTorch: pip install 'clipax[reference]'")
    peak = matmul_flops(steps) * jax.device_count()
    print(f'JAX {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(f'matrix product: {peak / 1e12:,.3g} TFLOP/s on all devices; {turns} x {steps} steps\n')
    print('| variant | ms a step | pairs/s | MFU of the product | GiB a device | compiling s |')
    print('|---|---|---|---|---|---|', flush=True)
    on_cpu = jax.default_backend() == 'cpu'
    clock = time.process_time if on_cpu and turns > 1 else time.perf_counter
    together: dict[str, Variant] = {}

    def measure() -> dict[str, list[list[float]]]:
        seconds = in_turn(together, steps, turns, clock)
        for name, found in seconds.items():
            print(row(name, together[name], found, peak), flush=True)
        return seconds

    config, model = next(iter(configs.values())), None
    for name, varied in configs.items():
        together[name], found = in_jax(varied)
        model = model or found
        if turns == 1:  # they need not fit into memory together
            measure()
            together.clear()
    if with_torch:
        import torch_step

        name, run = torch_step.runner(config, model)
        flops = 3 * abstract_step.forward_flops(model, model.example_inputs(config.batch_size)[0])
        together[name] = Variant(run, config.batch_size, flops, lambda: '- | -')
    seconds = measure()
    if with_torch and turns > 1:
        print_ratios(seconds)


def print_ratios(seconds: dict[str, list]) -> None:
    """Prints PyTorch's seconds, the last, over those of each variant in the same turn."""
    *names, torch_name = seconds
    print(f'\n| {torch_name} / variant | median | least | most |\n|---|---|---|---|')
    for name in names:
        ratios = [
            statistics.median(theirs) / statistics.median(ours)
            for ours, theirs in zip(seconds[name], seconds[torch_name], strict=True)
        ]
        middle = statistics.median(ratios)
        print(f'| {name} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} |')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', required=True)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--turns', type=int, default=1)
    parser.add_argument('--vary', nargs='*', default=[], metavar='KEY=VALUE,VALUE')
    parser.add_argument('--torch', action='store_true')
    args, changes = parser.parse_known_args()
    from clip_jax.runtime import environment

    environment.keep_freed_memory()  # as training does
    try:
        compare(configs_of(args.config, args.vary, changes), args.steps, args.turns, args.torch)
    except ValueError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
