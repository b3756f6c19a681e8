"""The least seconds of each instruction of a compiled program: a roofline.

An instruction takes at least as long as its bytes need through the memory, and as long as its
products need on the matrix units. Arrays that stay in a TPU's vector memory take no bytes.
"""

import itertools
import re
from collections.abc import Mapping

import numpy as np

from clip_jax.models import splash_attention
from clip_jax.planning import convolution, hlo, library
from clip_jax.planning.program import HBM, Array, Instruction, Program, Run
from clip_jax.planning.topologies import Chip

# They do nothing by themselves, or stand for what others do.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all'}
FREE |= {'while', 'call', 'conditional', 'partition-id', 'opt-barrier'}
FREE_CALLS = r'custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollective|AssumeGather)'
SLICES = ('dynamic-slice', 'slice', 'gather')  # of their first operand they read what they write


def seconds(compiled: Program, run: Run, chip: Chip) -> float:
    """The roofline of one call of an instruction: the larger of its two times.

    Copies that run beside other instructions take no time of their own.

    Args:
        compiled: the program.
        run: one of its instructions that are scheduled by themselves.
        chip: what it runs on.
    """
    if run.instruction.opcode.endswith('-start'):
        return 0.0
    in_memory = traffic(compiled, run) / chip.bandwidth
    return max(in_memory, flops(compiled, run) / (chip.peak_tflops * 1e12))


def traffic(compiled: Program, run: Run) -> int:
    """Bytes that one call of an instruction reads from and writes to HBM; 0 of a collective.

    Of an array that is only sliced, the slices count; of one that is updated in place, the update.
    """
    one, operands = run.instruction, compiled.arrays(run)
    kind = one.opcode.removesuffix('-start').removesuffix('-done')
    if one.opcode in FREE or one.opcode.endswith('-done') or kind in hlo.COLLECTIVES:
        return 0
    if re.search(FREE_CALLS, one.line):
        return 0
    if one.is_kernel and one.stated('bytes_accessed'):
        return one.stated('bytes_accessed')
    if one.opcode.endswith('-start'):  # a copy or a slice: of two arrays, the smaller is moved
        ends = one.results[:2]
        return min(x.bytes for x in ends) * sum(x.space == HBM for x in ends)
    around = compiled.computations[run.computation]
    read = sum(
        _read(compiled, one, position, arrays[0])
        for position, arrays in enumerate(operands)
        if len(arrays) == 1 and arrays[0].space == HBM
    )
    results = library.results(one)
    sizes = _written(compiled, around, one)
    if len(sizes) != len(results):
        sizes = [array.bytes for array in results]
    written = sum(n for n, array in zip(sizes, results, strict=True) if array.space == HBM)
    return read + written


def _read(compiled: Program, one: Instruction, position: int, whole: Array) -> int:
    """Bytes that an instruction reads of an operand."""
    if one.opcode in SLICES and position == 0:
        return min(whole.bytes, sum(array.bytes for array in one.results))
    if one.opcode == 'dynamic-update-slice' and position == 0:
        return 0
    inner = compiled.computations.get(one.calls, {})
    for name, parameter in inner.items():
        if parameter.opcode == 'parameter' and f' parameter({position})' in parameter.line:
            return min(whole.bytes, _used(compiled, inner, name, whole))
    return whole.bytes


def _used(compiled: Program, inner: Mapping[str, Instruction], name: str, whole: Array) -> int:
    """Bytes that the users of an array in a fusion read of it."""
    total = 0
    for user in inner.values():
        for position, operand in enumerate(user.operands):
            if operand != name:
                continue
            if user.opcode in ('bitcast', 'copy'):
                total += _used(compiled, inner, user.name, whole)
            elif user.opcode != 'tuple':
                total += _read(compiled, user, position, whole)
    return total


def _written(compiled: Program, around: Mapping[str, Instruction], one: Instruction) -> list[int]:
    """Bytes that an instruction writes, by result."""
    inputs = [around[name] for name in one.operands if name in around]
    inner = compiled.computations.get(one.calls, {}) if one.opcode == 'fusion' else {}
    root = next((x for x in inner.values() if x.is_root), None)
    if root:
        return _written(compiled, inner, root)
    if one.opcode == 'dynamic-update-slice' and len(inputs) > 1:
        return [inputs[1].results[0].bytes]
    if one.opcode == 'tuple' and len(inputs) == len(one.operands):
        return [size for x in inputs for size in _written(compiled, around, x)]
    if one.opcode == 'bitcast' and inputs and inputs[0].opcode == 'dynamic-update-slice':
        return _written(compiled, around, inputs[0])
    return [array.bytes for array in one.results]


def flops(compiled: Program, run: Run) -> int:
    """FLOPs of the matrix products in one call of an instruction; of a Pallas kernel, what it
    states.
    """
    if run.instruction.is_kernel:
        one, given = run.instruction, itertools.chain(*compiled.arrays(run))
        return one.stated('flops') or splash_attention.flops(one.kernel, given)
    if library.maker(run.instruction):
        return library.flops(run.instruction, compiled.arrays(run))
    return _flops(compiled, compiled.computations[run.computation], run.instruction)


def _flops(compiled: Program, around: Mapping[str, Instruction], one: Instruction) -> int:
    if one.opcode == 'fusion':
        inner = compiled.computations.get(one.calls, {})
        return sum(_flops(compiled, inner, x) for x in inner.values())
    if one.opcode not in ('convolution', 'dot'):
        return 0
    left, right = (around[name].results[0].shape for name in one.operands)
    out = one.results[0].shape
    if one.opcode == 'dot':
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.line)
        axes = [int(x) for x in contracted[1].split(',') if x] if contracted else []
        return 2 * int(np.prod(out)) * int(np.prod([left[i] for i in axes]))
    return convolution.flops(one.line, left, right, out)
