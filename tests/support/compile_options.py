"""A program that compiles a step of four layers on eight CUDA GPUs that are not there, with options
of XLA.

It prints a JSON object: for each case the kernels and collectives of the program in their order, as
letters: m a product of cuBLAS, f a fusion, R all-reduce, G all-gather, S reduce-scatter, which
begin at < and end at >; for the gradient of an embedding, how many numbers it sorts.
`python compile_options.py CHIP`.
"""

import json
import re
import sys

from clip_jax.planning import gpu

gpu.prepare()  # before JAX starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding  # noqa: E402

from clip_jax.step import compiler_options  # noqa: E402

COMBINE = ' '.join(
    f'xla_gpu_{kind}_combine_threshold_bytes={{0}}'
    for kind in ('all_reduce', 'all_gather', 'reduce_scatter')
)
CASES = {
    'none': '',
    'auto': 'auto',
    'O1': 'optimization_level=O1',
    'not combined': COMBINE.format(0),
    'auto, not combined': f'auto {COMBINE.format(0)}',
    'command buffers off': 'xla_gpu_enable_command_buffer=',
    'triton': 'xla_gpu_enable_triton_gemm=true',
    'deterministic': 'xla_gpu_deterministic_ops=true',
}
OPERATION = re.compile(
    r'\s*(?:ROOT )?%?[\w.-]+ = .*? (all-reduce|all-gather|reduce-scatter|fusion|custom-call)'
    r'(-start|-done)?\('
)
LETTERS = {'all-reduce': 'R', 'all-gather': 'G', 'reduce-scatter': 'S', 'fusion': 'f'}
WIDTH, LAYERS = 1024, 4


def loss(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return (x.astype(jnp.float32) ** 2).mean()


def step(weights: list[jax.Array], x: jax.Array) -> list[jax.Array]:
    grads = jax.grad(loss)(weights, x)
    return [weight - 0.1 * grad for weight, grad in zip(weights, grads, strict=True)]


def order(text: str) -> str:
    """The operations of a compiled program."""
    _, _, entry = text.partition('\nENTRY')
    found = map(OPERATION.match, entry.splitlines())
    ends = {'-start': '<', '-done': '>', None: ''}
    return ' '.join(LETTERS.get(one[1], 'm') + ends[one[2]] for one in found if one)


def main(chip: str) -> dict[str, str]:
    devices = gpu.devices(chip, '8')
    mesh = Mesh(np.array(devices), ('data',))
    found = {}
    for where, spec in (('data', PartitionSpec()), ('fsdp', PartitionSpec('data'))):
        weight = jax.ShapeDtypeStruct(
            (WIDTH, WIDTH), jnp.bfloat16, sharding=NamedSharding(mesh, spec)
        )
        rows = NamedSharding(mesh, PartitionSpec('data'))
        x = jax.ShapeDtypeStruct((WIDTH * mesh.size, WIDTH), jnp.bfloat16, sharding=rows)
        for name, text in CASES.items():
            options = compiler_options.parse(text, devices[0], mesh.size)
            compiled = jax.jit(
                step, donate_argnums=0, compiler_options=options, out_shardings=weight.sharding
            )
            program = compiled.lower([weight] * LAYERS, x).compile()
            found[f'{where}: {name}'] = order(program.as_text())
    for name in ('none', 'deterministic'):
        options = compiler_options.parse(CASES[name], devices[0], 1)
        found[f'embedding: {name}'] = sorted_numbers(options, devices[0])
    return found


def sorted_numbers(options: dict, device: jax.Device) -> str:
    """How many numbers the gradient of CLIP's token embedding sorts, for 128 texts."""
    place = SingleDeviceSharding(device)
    table = jax.ShapeDtypeStruct((49_408, 512), jnp.float32, sharding=place)
    tokens = jax.ShapeDtypeStruct((128 * 77,), jnp.int32, sharding=place)
    gradient = jax.grad(lambda table, tokens: (table[tokens] ** 2).sum())
    program = jax.jit(gradient, compiler_options=options).lower(table, tokens).compile()
    return ' '.join(re.findall(r'= \(s32\[(\d+)\].* sort\(', program.as_text()))


if __name__ == '__main__':
    print(json.dumps(main(sys.argv[1]), indent=1))
