"""A program that compiles attention for CUDA GPUs that are not there, with JAX's CUDA plugin.

It prints a JSON object: for each case how many forward and backward calls of cuDNN the compiled
program has. `python compile_cudnn.py attention | transformer CHIP`.
"""

import itertools
import json
import os
import sys

# Tile sizes are found by trying them on a device. Both must be set before JAX starts.
FLAGS = '--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0'
os.environ['XLA_FLAGS'] = FLAGS
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from clip_jax import sharding  # noqa: E402
from clip_jax.models import layers  # noqa: E402

KEY = jax.eval_shape(lambda: jax.random.key(0))
# Compute capability, cores, bytes a second, bytes of memory, bytes of shared memory of a core:
# figures of the vendor's data sheets.
CHIPS = {
    'h100': (9, 0, 132, 3_352_000_000_000, 84_942_979_072, 232_448),
    'a100': (8, 0, 108, 2_039_000_000_000, 85_097_971_712, 166_912),
    'b200': (10, 0, 148, 8_000_000_000_000, 191_514_214_400, 232_448),
}
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {5} shared_memory_per_block_optin: {5}
  core_count: {2} fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {3} l2_cache_size: 52428800 device_memory_size: {4}
  cuda_compute_capability {{ major: {0} minor: {1} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
"""


def mesh(chip: str) -> Mesh:
    """A mesh of one GPU; JAX is told its cuDNN and capability, which it asks the machine for."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    major, minor, *_ = CHIPS[chip]
    own = float(f'{major}.{minor}')
    cudnn.cuda_versions = type('Versions', (), {'cudnn_get_version': lambda: 91200})
    cudnn.check_compute_capability = lambda least: own >= float(least)
    cudnn.is_cuda_compute_capability_equal = lambda other: own == float(other)
    topology = topologies.get_topology_desc(
        platform='cuda', target_config=DESCRIPTION.format(*CHIPS[chip]), topology='1x1x1'
    )
    return Mesh(np.array(topology.devices).reshape(1, 1, 1, 1), sharding.AXES)


def calls(function, *shapes) -> list[int]:
    """Compiles the gradient of a function; returns the forward and backward calls of cuDNN."""
    text = jax.jit(jax.grad(function)).lower(*shapes).compile().as_text()
    targets = [line for line in text.splitlines() if 'custom_call_target="__cudnn$fmha' in line]
    backward = sum('Backward' in line for line in targets)
    return [len(targets) - backward, backward]


def attention(place: NamedSharding) -> dict[str, list[int]]:
    found = {}
    for length, causal, masked in itertools.product(
        (50, 77, 197, 257, 577), (False, True), (False, True)
    ):
        x = jax.ShapeDtypeStruct((8, length, 12, 64), jnp.bfloat16, sharding=place)
        mask = jax.ShapeDtypeStruct((8, 1, 1, length), bool, sharding=place)

        def loss(query, key, value, mask, causal=causal, masked=masked):
            out = layers.attend(
                query, key, value, mask if masked else None, causal=causal, implementation='auto'
            )
            return out.astype(jnp.float32).sum()

        found[f'{length} causal={causal} masked={masked}'] = calls(loss, x, x, x, mask)
    return found


def transformer(place: NamedSharding) -> dict[str, list[int]]:
    found = {}
    sizes = {'depth': 3, 'heads': 2, 'mlp_dim': 256, 'dtype': jnp.bfloat16, 'attention': 'auto'}
    for remat, scan in itertools.product(layers.REMAT, (False, True)):
        blocks = layers.Transformer(layers.TransformerConfig(remat=remat, scan=scan, **sizes))
        like = jax.ShapeDtypeStruct((8, 197, 128), jnp.bfloat16)

        def loss(variables, x, blocks=blocks):
            return blocks.apply(variables, x).astype(jnp.float32).sum()

        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            (jax.eval_shape(blocks.init, KEY, like), like),
        )
        found[f'{remat} scan={scan}'] = calls(loss, *shapes)
    return found


if __name__ == '__main__':
    what, chip = sys.argv[1:]
    devices = mesh(chip)
    with jax.set_mesh(devices):
        place = NamedSharding(devices, PartitionSpec())
        print(json.dumps({'attention': attention, 'transformer': transformer}[what](place)))
