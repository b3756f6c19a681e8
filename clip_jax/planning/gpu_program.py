"""What a compiled program runs on a GPU: kernels by who makes them."""

import re
from typing import Any

from clip_jax.planning import hlo, library, program, roofline
from clip_jax.planning.program import Instruction
from clip_jax.planning.topologies import Chip

# What starts no kernel, or one of a collective.
SILENT = re.compile(
    '|'.join((*roofline.FREE, *hlo.COLLECTIVES, 'iota', 'replica-id', '.*-start', '.*-done'))
)
FUSIONS = {'triton': 'Triton', 'cudnn': 'cuDNN', 'cublas': 'cuBLAS'}  # by kind


def kernels(text: str, chip: Chip) -> dict[str, dict[str, float]]:
    """Counts the kernels that a compiled program starts on one GPU; loops count as often as they
    run, collectives not at all.

    Args:
        text: its optimized HLO.
        chip: the GPU.

    Returns:
        By maker, such as 'cuBLAS' or 'Triton', the most expensive first: `count`, `tflop`, `gb`
        (10^9 bytes read and written) and `seconds` by the roofline.
    """
    compiled = program.read(text)
    found: dict[str, dict[str, Any]] = {}
    for run in compiled.scheduled():
        if SILENT.fullmatch(run.instruction.opcode):
            continue
        entry = found.setdefault(
            maker(run.instruction), {'count': 0, 'tflop': 0.0, 'gb': 0.0, 'seconds': 0.0}
        )
        entry['count'] += run.times
        entry['tflop'] += run.times * roofline.flops(compiled, run) / 1e12
        entry['gb'] += run.times * roofline.traffic(compiled, run) / 1e9
        entry['seconds'] += run.times * roofline.seconds(compiled, run, chip)
    return dict(sorted(found.items(), key=lambda item: -item[1]['seconds']))


def maker(one: Instruction) -> str:
    """Who makes the kernel of an instruction: a library, Triton, XLA, or what a call names."""
    if one.opcode == 'custom-call':
        return library.maker(one) or library.target(one)
    kind = re.search(r'"kind":"__(triton|cudnn|cublas)', one.line)
    return FUSIONS[kind[1]] if kind else 'XLA'
