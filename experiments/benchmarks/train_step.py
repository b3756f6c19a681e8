r"""Speed and memory of a config's train step on the devices that are here, with random input.

    python experiments/benchmarks/train_step.py --config=configs/clip_vit_b16.py \
        --config.batch_size=512 --vary model.remat=none,dots model.attention=xla,cudnn --torch
    python experiments/benchmarks/train_step.py --config=configs/flickr8k.py --steps=5

MFU is 3 x the forward FLOPs of both encoders a second, over those of a matrix product timed in the
same process. --vary times every combination of values. --torch times the same step in PyTorch
through open_clip, where that is installed, on the same device in the same run.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def timed(run: Callable[[], Any], wait: Callable[[Any], Any], steps: int) -> list[float]:
    """Seconds of so many runs, after two that do not count."""
    seconds = []
    for i in range(steps + 2):
        begin = time.perf_counter()
        wait(run())
        if i >= 2:
            seconds.append(time.perf_counter() - begin)
    return seconds


def matmul_flops(steps: int) -> float:
    """FLOPs a second of a large matrix product of random numbers on one device."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == 'cpu'
    size, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: product(x, x), jax.block_until_ready, steps)
    return 2 * size**3 / statistics.median(seconds)


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


def in_jax(config: Any, steps: int) -> tuple[list[float], float, float, int]:
    """Seconds of each step, GiB that a device needed, seconds of compilation, FLOPs of a step."""
    import jax

    from clip_jax.planning import abstract_step

    step = abstract_step.step_of(config, jax.devices(), config.model.dtype)
    current, batch, program, compiling = prepared(step)

    def run() -> dict[str, jax.Array]:
        nonlocal current
        current, numbers = program(current, batch)
        return numbers

    seconds = timed(run, jax.block_until_ready, steps)
    used = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if used is None:  # a CPU does not say
        memory = program.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    flops = 3 * abstract_step.forward_flops(step.model, config.batch_size)
    return seconds, used / 2**30, compiling, flops


def in_torch(config: Any, steps: int) -> list[float]:
    """Seconds of each step of open_clip's model and loss with AdamW, compiled, in bfloat16 on a
    GPU.
    """
    import open_clip
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = open_clip.create_model(config.model.preset, output_dict=True).to(device)
    model.train()
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2, fused=True)
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    images = torch.randn(config.batch_size, 3, size, size, device=device)
    tokens = torch.randint(0, 100, (config.batch_size, model.context_length), device=device)
    forward = torch.compile(model) if device == 'cuda' else model

    def run() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            out = forward(images, tokens)
            value = loss(out['image_features'], out['text_features'], out['logit_scale'])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value

    return timed(run, lambda value: value.item(), steps)


def row(name: str, seconds: Sequence[float], batch: int, mfu: str, rest: str) -> str:
    """One row of the table."""
    middle = statistics.median(seconds)
    return (
        f'| {name} | {middle * 1e3:,.1f} ({min(seconds) * 1e3:,.1f} to {max(seconds) * 1e3:,.1f}) '
        f'| {batch / middle:,.1f} | {mfu} | {rest} |'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', required=True)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--vary', nargs='*', default=[], metavar='KEY=VALUE,VALUE')
    parser.add_argument('--torch', action='store_true')
    args, changes = parser.parse_known_args()
    import jax

    from clip_jax.cli import config_file

    keys = [word.partition('=')[0] for word in args.vary]
    values = [word.partition('=')[2].split(',') for word in args.vary]
    peak = matmul_flops(args.steps) * jax.device_count()
    print(f'JAX {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(f'matrix product: {peak / 1e12:,.3g} TFLOP/s on all devices; {args.steps} steps\n')
    print('| variant | ms a step | pairs/s | MFU of the product | GiB a device | compiling s |')
    print('|---|---|---|---|---|---|')
    for chosen in itertools.product(*values):
        words = [f'{key}={value}' for key, value in zip(keys, chosen, strict=True)]
        flags = [f'--config.{word}' for word in words]
        config = config_file.read(args.config, [*changes, *flags])
        seconds, gib, compiling, flops = in_jax(config, args.steps)
        mfu = flops / statistics.median(seconds) / peak
        rest = f'{gib:.2f} | {compiling:.1f}'
        name = ' '.join(words) or 'as the config'
        print(row(name, seconds, config.batch_size, f'{mfu:.1%}', rest), flush=True)
    if args.torch:
        seconds = in_torch(config, args.steps)
        mfu = flops / statistics.median(seconds) / peak
        print(row('PyTorch, open_clip', seconds, config.batch_size, f'{mfu:.1%}', '- | -'))


if __name__ == '__main__':
    main()
