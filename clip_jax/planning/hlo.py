"""Static analysis of traced and compiled programs: FLOPs, collectives, cycles.

The body of a loop counts once per iteration.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.planning import program

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'all-to-all')
MIB = 2**20


def flops(jaxpr: Any) -> collections.Counter[str]:
    """Counts the FLOPs of all matrix products and convolutions of a traced program.

    Args:
        jaxpr: a jaxpr, as `jax.jit(f).trace(...).jaxpr.jaxpr` has it.

    Returns:
        FLOPs over all devices, by the dtype of the operands.
    """
    total = _own_flops(jaxpr)
    for equation in jaxpr.eqns:
        times = equation.params['length'] if equation.primitive.name == 'scan' else 1
        if equation.primitive.name == 'shard_map':
            times = equation.params['mesh'].size
        for inner in _inner(equation):
            for dtype, count in flops(inner).items():
                total[dtype] += times * count
    return total


def _inner(equation: Any) -> Iterator[Any]:
    """The inner jaxprs of an equation; those of kernels do not count."""
    if equation.primitive.name == 'pallas_call':
        return
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            one = getattr(one, 'jaxpr', one)
            if hasattr(one, 'eqns'):
                yield one


def _own_flops(jaxpr: Any) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call' and equation.params['cost_estimate']:
            # What the kernel says that it needs; in its own jaxpr are also products with zeros.
            dtype = str(equation.invars[0].aval.dtype)
            found[dtype] += equation.params['cost_estimate'].flops
        if equation.primitive.name not in ('dot_general', 'conv_general_dilated'):
            continue
        left, right = (x.aval for x in equation.invars[:2])
        out = int(np.prod(equation.outvars[0].aval.shape))
        dimensions = equation.params['dimension_numbers']
        if equation.primitive.name == 'dot_general':
            products = int(np.prod([left.shape[i] for i in dimensions[0][0]]))
        else:
            products = int(np.prod(right.shape)) // right.shape[dimensions.rhs_spec[0]]
        found[str(left.dtype)] += 2 * out * products
    return found


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Counts the collectives of a compiled program.

    Args:
        text: the optimized HLO of the program, of one device.

    Returns:
        By kind, the `count` per step and the `mib` of their results on a device.
    """
    once: dict[tuple, tuple[int, float]] = {}
    for number, run in enumerate(program.read(text).runs()):
        line = run.instruction.line
        match = re.search(r'= (.+?) (' + '|'.join(COLLECTIVES) + r')(-start)?\(', line)
        if not match:
            continue
        shapes, kind, started = match.groups()
        arrays = [array.unpadded_bytes for array in run.instruction.results]
        # An asynchronous start lists its operands before its results; that of a sum does not.
        both = started and kind != 'all-reduce'
        size = max(arrays, default=0) if both else sum(arrays)
        # On TPU, an asynchronous collective appears once in every computation that it overlaps
        # with, under one name; the memory space of its result may differ.
        name = re.search(r'metadata=\{[^}]*\}', line)
        key = (kind, re.sub(r'\{[^}]*\}', '', shapes), name[0] if name else number)
        once[key] = min(run.times, once.get(key, (run.times,))[0]), size / MIB
    found: dict[str, dict[str, float]] = {}
    for (kind, *_), (times, mib) in once.items():
        entry = found.setdefault(kind, {'count': 0, 'mib': 0.0})
        entry['count'] += times
        entry['mib'] += times * mib
    return found


def cycles(text: str) -> int:
    """Sums the TPU compiler's estimates of cycles over a program, collectives left out; 0 if it has
    none.
    """
    total = 0
    for run in program.read(text).scheduled():
        total += run.times * run.instruction.cycles
    return total


def kernels(text: str) -> dict[str, dict[str, int]]:
    """Counts the calls of Pallas kernels in a compiled program, of one device.

    Args:
        text: its optimized HLO; `cycles` does not count what is in these calls.

    Returns:
        By the kernel's name, the `count` of calls and the sums of what the kernel says that it
        needs: `flops` and `transcendentals`.
    """
    found: dict[str, dict[str, int]] = {}
    for run in program.read(text).runs():
        name = re.search(r'([^/]+)/pallas_call$', run.instruction.op_name)
        if not name or not run.instruction.is_kernel:
            continue
        entry = found.setdefault(name[1], {'count': 0, 'flops': 0, 'transcendentals': 0})
        entry['count'] += run.times
        for what in ('flops', 'transcendentals'):
            entry[what] += run.times * run.instruction.stated(what)
    return found
