"""Estimates of single operations, compiled alone for one chip of a TPU topology:
python experiments/plans/operations.py v5e:2x2. It needs libtpu, and no TPU.
"""

import os
import sys
import tempfile
from pathlib import Path

from clip_jax.planning import libtpu, schedules

ROWS = 128 * 197  # tokens of 128 images of ViT-B/16


def operations(shape) -> dict:
    """Functions and the abstract arrays that they take, made by `shape(dtype, *sizes)`."""
    import jax
    import jax.numpy as jnp

    low = jnp.bfloat16
    mlp = shape(low, ROWS, 768), shape(low, 768, 3072)
    square = shape(low, 8192, 8192)
    logits = shape(jnp.float32, 128, 12, 197, 197)
    return {
        'product of 8,192 x 8,192': (jnp.matmul, square, square),
        'x * 2 + 1, [128, 197, 6144]': (lambda x: x * 2 + 1, shape(low, 128, 197, 6144)),
        'softmax, float32 [128, 12, 197, 197]': (jax.nn.softmax, logits),
        'product and GELU by erfc': (lambda x, w: jax.nn.gelu(x @ w, approximate=False), *mlp),
        'product and GELU by tanh': (lambda x, w: jax.nn.gelu(x @ w), *mlp),
    }


def main() -> None:
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= libtpu.VARIABLES | {'LIBTPU_INIT_ARGS': schedules.flags(folder)}
        import jax

        from clip_jax.planning import estimates, topologies

        planned = topologies.topology(name)
        assert planned.chip, 'expected a TPU topology such as v5e:2x2'
        on_one = jax.sharding.SingleDeviceSharding(planned.devices[0])

        def shape(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=on_one)

        print(f'{name + ", ms":40}', *(f'{kind:>10}' for kind in estimates.NAMES))
        for what, (function, *arguments) in operations(shape).items():
            schedules.clear(Path(folder))
            text = jax.jit(function).lower(*arguments).compile().as_text()
            found = estimates.of(text, planned.chip, schedules.read(Path(folder)))['seconds']
            print(f'{what:40}', *(f'{1e3 * found[kind]:10.2f}' for kind in estimates.NAMES))


if __name__ == '__main__':
    main()
