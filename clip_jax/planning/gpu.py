"""NVIDIA GPUs that are not here: what XLA is told of them, so that it compiles for them.

JAX's CUDA plugin compiles without a GPU, a driver or the CUDA toolkit. Kernels are not tuned, since
that is done by running them: products go to cuBLAS. cuDNN is not asked whether it has a kernel: JAX
and XLA check shapes and types for it.
"""

import importlib.util
import os
import re
from typing import Any, NamedTuple

FLAGS = '--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0'
EXTRA = "pip install 'clipax[plan-gpu]'"
PLUGIN = 'jax_plugins.xla_cuda13'
PER_HOST = 8


class Gpu(NamedTuple):
    """Figures of NVIDIA's data sheets and architecture white papers, of the SXM form."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    clock_ghz: float
    memory: int  # bytes that CUDA reports
    bandwidth: float  # bytes a second
    cache: int  # bytes of the second level
    shared: int  # bytes of shared memory that a block may ask for
    peak_tflops: float  # dense bfloat16

    @property
    def usable_gib(self) -> float:
        """GiB that JAX takes for arrays: three quarters, or what the environment sets."""
        share = os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.75')
        if not re.fullmatch(r'0?\.\d*[1-9]\d*|1(\.0*)?', share):
            raise ValueError(
                f'XLA_PYTHON_CLIENT_MEM_FRACTION is {share!r}; expected a fraction such as 0.9'
            )
        return float(share) * self.memory / 2**30


GPUS = {
    'a100': Gpu((8, 0), 108, 1.41, 85_097_971_712, 2.039e12, 41_943_040, 166_912, 312),
    'h100': Gpu((9, 0), 132, 1.98, 84_942_979_072, 3.352e12, 52_428_800, 232_448, 989),
    'h200': Gpu((9, 0), 132, 1.98, 150_110_011_392, 4.8e12, 62_914_560, 232_448, 989),
    'b200': Gpu((10, 0), 148, 1.965, 191_514_214_400, 8e12, 132_120_576, 232_448, 2250),
}
# XLA's GpuTargetConfigProto as text.
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared} shared_memory_per_block_optin: {gpu.shared}
  core_count: {gpu.cores} fpus_per_core: {fpus} clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f} l2_cache_size: {gpu.cache} device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
"""


def prepare() -> None:
    """Sets what XLA reads when it starts; call it before JAX is imported.

    Raises:
        ValueError: the CUDA plugin is not installed.
    """
    if not installed():
        raise ValueError(f"--topology: plans for GPUs need JAX's CUDA plugin, but no GPU: {EXTRA}")
    os.environ['JAX_PLATFORMS'] = 'cpu'  # the CUDA backend itself must not start
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()


def installed() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    try:
        return importlib.util.find_spec(PLUGIN) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def devices(kind: str, count: str) -> list:
    """Returns GPUs that programs can be compiled for; call `prepare` before.

    JAX is told their cuDNN and compute capability, which it asks the machine for, for the rest of
    the process: with `prepare`, there are no other GPUs in it.

    Args:
        kind: a key of GPUS.
        count: how many: 1 to 8 of one host, or a multiple of 8.

    Raises:
        ValueError: the count is another.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn
    from jax.experimental import topologies

    number = int(count) if count.isdecimal() else 0
    if not number or (number > PER_HOST and number % PER_HOST):
        raise ValueError(
            f'--topology is {kind}:{count}; expected 1 to {PER_HOST} GPUs of one host, or a '
            f'multiple of {PER_HOST}, for instance {kind}:{PER_HOST}'
        )
    gpu = GPUS[kind]
    cudnn_module: Any = cudnn
    cudnn_module.cuda_versions = type('Versions', (), {'cudnn_get_version': lambda: 91200})
    cudnn_module.check_compute_capability = lambda least: gpu.capability >= _version(least)
    cudnn_module.is_cuda_compute_capability_equal = lambda other: gpu.capability == _version(other)
    hosts = max(1, number // PER_HOST)
    shape = f'1x{hosts}x{number // hosts}'  # slices x hosts x GPUs
    return topologies.get_topology_desc(
        platform='cuda', target_config=describe(gpu), topology=shape
    ).devices


def describe(gpu: Gpu) -> str:
    """The description of a GPU that XLA compiles for."""
    return DESCRIPTION.format(gpu=gpu, fpus=64 if gpu.capability[0] == 8 else 128)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split('.')))
