"""What a compiled program runs on a GPU: kernels by who makes them, and a roofline of them."""

import math
import re
from typing import Any, NamedTuple

from clip_jax.planning import program
from clip_jax.planning.gpu import Gpu
from clip_jax.planning.program import Array, Instruction, Program, Run

# What starts no kernel, or one of a collective.
SILENT = re.compile(
    'parameter|constant|iota|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|'
    r'partition-id|replica-id|.*-start|.*-done|all-.*|reduce-scatter|collective-.*'
)
KINDS = {'triton': 'Triton', 'cudnn': 'cuDNN', 'cublas': 'cuBLAS'}  # of fusions
ALIASES = ('bitcast', 'get-tuple-element', 'reshape')


class Cost(NamedTuple):
    """What an instruction takes each time that it runs."""

    maker: str
    flops: int
    bytes: int  # read and written in the GPU's memory
    bits: int  # of the factors of its products

    def seconds(self, gpu: Gpu) -> float:
        """The larger of its bytes over the bandwidth and its FLOPs over the peak.

        Products of float32 are rounded to TF32, at half of the peak of bfloat16.
        """
        peak = gpu.peak_tflops * 1e12 / (2 if self.bits == 32 else 1)
        return max(self.bytes / gpu.bandwidth, self.flops / peak)


def kernels(text: str, gpu: Gpu) -> dict[str, dict[str, float]]:
    """Counts the kernels that a compiled program starts on one GPU; loops count as often as they
    run, collectives not at all.

    Args:
        text: its optimized HLO.
        gpu: the GPU.

    Returns:
        By maker, such as 'cuBLAS' or 'Triton': `count`, `tflop`, `gb` (10^9 bytes read and written)
        and `seconds` by a roofline.
    """
    read = program.read(text)
    found: dict[str, dict[str, Any]] = {}
    for run in read.scheduled():
        if SILENT.fullmatch(run.instruction.opcode):
            continue
        one = cost(read, run)
        entry = found.setdefault(one.maker, {'count': 0, 'tflop': 0.0, 'gb': 0.0, 'seconds': 0.0})
        entry['count'] += run.times
        entry['tflop'] += run.times * one.flops / 1e12
        entry['gb'] += run.times * one.bytes / 1e9
        entry['seconds'] += run.times * one.seconds(gpu)
    return dict(sorted(found.items(), key=lambda item: -item[1]['seconds']))


def cost(read: Program, run: Run) -> Cost:
    """The cost of an instruction that is scheduled by itself."""
    instruction, operands = run.instruction, read.arrays(run)
    results = list(instruction.results)
    if instruction.opcode == 'fusion':
        return Cost(_maker(instruction), 0, _fused_bytes(read, instruction), 16)
    if instruction.opcode != 'custom-call':
        return Cost('XLA', 0, _bytes(results) + _bytes(sum(operands, ())), 16)
    # The last result of a library's call is its scratch memory.
    if len(results) > 1 and results[-1].dtype in ('s8', 'u8'):
        results.pop()
    return Cost(
        _maker(instruction),
        _library_flops(instruction, operands),
        _bytes(results) + _bytes(sum(operands, ())),
        32 if operands and operands[0] and operands[0][0].dtype == 'f32' else 16,
    )


def _maker(instruction: Instruction) -> str:
    """Who makes the kernel of a fusion or a custom call."""
    if instruction.opcode == 'fusion':
        kind = re.search(r'"kind":"__(triton|cudnn|cublas)', instruction.line)
        return KINDS[kind[1]] if kind else 'XLA'
    target = _target(instruction)
    if target.startswith('__cudnn$fmha'):
        return 'cuDNN attention'
    for start, maker in (('__cudnn', 'cuDNN'), ('__cublas', 'cuBLAS')):
        if target.startswith(start):
            return maker
    return target


def _target(instruction: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]+)"', instruction.line)
    return found[1] if found else ''


def _library_flops(instruction: Instruction, operands: list[tuple[Array, ...]]) -> int:
    """FLOPs of a call of cuBLAS or of cuDNN's attention."""
    target, shapes = _target(instruction), [x[0].shape if x else () for x in operands]
    if target.startswith('__cudnn$fmha'):
        # Two products of queries [B, L, heads, head_dim] and keys; five in the backward pass.
        return (10 if 'Backward' in target else 4) * math.prod(shapes[0]) * shapes[1][1]
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.line)
    if not contracted:
        return 0
    length = math.prod(shapes[0][int(i)] for i in re.findall(r'\d+', contracted[1]))
    return 2 * math.prod(instruction.results[0].shape) * length


def _fused_bytes(read: Program, fusion: Instruction) -> int:
    """Bytes that a fusion reads and writes; of an array of which it slices or updates a part, that
    part.
    """
    inside = read.computations[fusion.calls]
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for instruction in inside.values():
        for position, name in enumerate(instruction.operands):
            users.setdefault(name, []).append((instruction, position))

    def uses(name: str) -> list[tuple[Instruction, int]]:
        """How an array is used, seen through what only renames it."""
        found = []
        for user, position in users.get(name, ()):
            found += uses(user.name) if user.opcode in ALIASES else [(user, position)]
        return found

    total, updates = 0, 0
    for parameter in inside.values():
        if parameter.opcode != 'parameter':
            continue
        found = uses(parameter.name)
        kinds = {(user.opcode, position) for user, position in found}
        if kinds == {('dynamic-slice', 0)}:
            total += sum(_bytes(user.results) for user, _ in found)
        elif kinds == {('dynamic-update-slice', 0)}:
            updates += sum(_bytes(inside[user.operands[1]].results) for user, _ in found)
        else:
            total += _bytes(parameter.results)
    return total + (updates or _bytes(fusion.results))


def _bytes(arrays: Any) -> int:
    return sum(array.unpadded_bytes for array in arrays)
