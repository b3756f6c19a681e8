r"""Memory, FLOPs and time of value and gradient of the losses, by implementation.

    python experiments/benchmarks/loss.py --simulate=8 --batch 8192 32768 --dim=768
    python experiments/benchmarks/loss.py --batch 65536 --dim=512 --steps=5

Memory and FLOPs are those of one device, read from the compiled program; b is the batch of a
device, B of all, d the dimension. Time is the median, with the fastest and the slowest, of --steps
runs; 0 compiles only.
"""

import argparse
import functools
import os
import statistics
import time


def measure(
    name: str, implementation: str, batch: int, dim: int, block_size: int, steps: int
) -> str:
    """One row of the table."""
    import jax
    import jax.numpy as jnp

    from clip_jax import build, sharding
    from clip_jax.planning import hlo

    mesh = sharding.make_mesh()
    loss = build.loss(
        {'name': name, 'implementation': implementation, 'block_size': block_size}, mesh
    )
    bias = (jnp.float32(-10),) if name == 'sigmoid' else ()

    def value(image: jax.Array, text: jax.Array, scale: jax.Array) -> jax.Array:
        return loss(image, text, scale, *bias)[0]

    step = jax.value_and_grad(value, argnums=(0, 1, 2))
    rows = jax.jit(
        lambda key: jax.nn.standardize(jax.random.normal(key, (batch, dim))) / dim**0.5,
        out_shardings=sharding.over_batch(mesh),
    )
    shape = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=sharding.over_batch(mesh))
    scale = jax.device_put(jnp.float32(100), sharding.replicated(mesh))
    program = jax.jit(step).lower(shape, shape, scale).compile()
    scratch = program.memory_analysis().temp_size_in_bytes
    flops = sum(hlo.flops(jax.make_jaxpr(step)(shape, shape, scale).jaxpr).values())
    local = batch // mesh.size
    cells = [name, implementation, mesh.size, f'{batch:,}', f'{scratch / 2**20:,.0f}']
    cells += [f'{scratch / (4 * local * dim):.2f}', f'{scratch / (4 * local * batch):.3f}']
    cells.append(f'{flops / mesh.size / (local * batch * dim):.2f}')
    if steps:
        image, text = rows(jax.random.key(0)), rows(jax.random.key(1))
        run = functools.partial(program, image, text, scale)
        jax.block_until_ready(run())
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begin)
        cells.append(
            f'{statistics.median(seconds) * 1e3:,.1f} '
            f'({min(seconds) * 1e3:,.1f} to {max(seconds) * 1e3:,.1f})'
        )
    else:
        cells.append('not measured')
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--simulate', type=int, help='number of simulated CPU devices')
    parser.add_argument('--batch', type=int, nargs='+', default=[32_768])
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--block-size', type=int, default=512, help='texts in a tile')
    parser.add_argument('--steps', type=int, default=0)
    parser.add_argument('--losses', nargs='+', default=['softmax', 'sigmoid'])
    parser.add_argument('--implementations', nargs='+', default=['dense', 'gather', 'ring'])
    args = parser.parse_args()
    if args.simulate:
        flags = f'--xla_force_host_platform_device_count={args.simulate}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
        os.environ['JAX_PLATFORMS'] = 'cpu'
    import jax

    print(f'JAX {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(f'd = {args.dim}, block_size {args.block_size}\n')
    print(
        '| loss | implementation | devices | B | scratch MiB | / 4bd | / 4bB | FLOPs / bBd | ms |'
    )
    print('|---|---|---|---|---|---|---|---|---|')
    for batch in args.batch:
        for name in args.losses:
            for implementation in args.implementations:
                row = measure(name, implementation, batch, args.dim, args.block_size, args.steps)
                print(row, flush=True)


if __name__ == '__main__':
    main()
