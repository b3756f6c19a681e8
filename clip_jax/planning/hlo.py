"""Static analysis of traced and compiled programs: FLOPs, collectives, kernels.

The body of a loop counts once per iteration.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.models import cudnn_attention, splash_attention
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
        if equation.primitive.name == 'pallas_call':
            # What the kernel says that it needs; in its own jaxpr are also products with zeros.
            given, stated = [x.aval for x in equation.invars], equation.params['cost_estimate']
            count = (
                stated.flops if stated else splash_attention.flops(equation.params['name'], given)
            )
            found[next(str(x.dtype) for x in given if x.dtype.kind not in 'iu')] += count
        if equation.primitive.name in cudnn_attention.PRODUCTS:
            query, key = (x.aval for x in equation.invars[:2])
            products = cudnn_attention.PRODUCTS[equation.primitive.name]
            found[str(query.dtype)] += 2 * products * int(np.prod(query.shape)) * key.shape[1]
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
        By kind, the `count` per step and the `mib` of their results on a device; of a
        reduce-scatter that libtpu makes of an all-reduce, the `mib` before it scatters.
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
        if run.computation.startswith('all-reduce-scatter'):
            kind = 'reduce-scatter'
        # On TPU, an asynchronous collective appears once in every computation that it overlaps
        # with, under one name or as one chain, on one channel; the memory space of its result may
        # differ.
        name = re.search(r'chain_id="\d+"|metadata=\{[^}]*\}', line)
        channel = re.search(r'channel_id=\d+', line)
        key = (kind, re.sub(r'\{[^}]*\}', '', shapes), channel and channel[0])
        key += (name[0] if name else number,)
        once[key] = min(run.times, once.get(key, (run.times,))[0]), size / MIB
    found: dict[str, dict[str, float]] = {}
    for (kind, *_), (times, mib) in once.items():
        entry = found.setdefault(kind, {'count': 0, 'mib': 0.0})
        entry['count'] += times
        entry['mib'] += times * mib
    return found


def kernels(text: str) -> dict[str, dict[str, int]]:
    """Counts the calls of Pallas kernels in a compiled program, of one device.

    Args:
        text: its optimized HLO.

    Returns:
        By the kernel's name, the `count` of calls and the sums of what the kernel says that it
        needs: `flops` and `transcendentals`.
    """
    found: dict[str, dict[str, int]] = {}
    for run in program.read(text).runs():
        name = run.instruction.kernel
        if not name:
            continue
        entry = found.setdefault(name, {'count': 0, 'flops': 0, 'transcendentals': 0})
        entry['count'] += run.times
        for what in ('flops', 'transcendentals'):
            entry[what] += run.times * run.instruction.stated(what)
    return found
