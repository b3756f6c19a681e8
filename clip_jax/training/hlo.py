"""What a program will do, read from it before it runs: FLOPs, collectives, cycles. A loop counts as
often as it runs.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'all-to-all')
BYTES = {'f32': 4, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'pred': 1, 's8': 1, 'u8': 1}
MIB = 2**20


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or one that a program was compiled for, has too little memory."""
    return any(words in str(error) for words in ('RESOURCE_EXHAUSTED', 'ut of memory'))


def flops(jaxpr: Any) -> collections.Counter[str]:
    """FLOPs of all matrix products and convolutions of a traced program, of all devices together,
    by the type of what is multiplied.
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
    """The programs that an equation holds."""
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            one = getattr(one, 'jaxpr', one)
            if hasattr(one, 'eqns'):
                yield one


def _own_flops(jaxpr: Any) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for equation in jaxpr.eqns:
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
    """Counts the collectives of a compiled program by kind, and their results' MiB on a device."""
    once: dict[tuple, tuple[int, float]] = {}
    for number, (times, _, line) in enumerate(_lines(text)):
        match = re.search(r'= (.+?) (' + '|'.join(COLLECTIVES) + r')(-start)?\(', line)
        if not match:
            continue
        shapes, kind, started = match.groups()
        arrays = [
            BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(',') if n]))
            for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
        ]
        # What is started names what it takes before what it gives.
        size = max(arrays, default=0) if started else sum(arrays)
        # On TPU, what is done beside other work stands in the program once in each of these, loops
        # included, all with one name; where in memory its result lies may differ.
        name = re.search(r'metadata=\{[^}]*\}', line)
        key = (kind, re.sub(r'\{[^}]*\}', '', shapes), name[0] if name else number)
        once[key] = min(times, once.get(key, (times,))[0]), size / MIB
    found: dict[str, dict[str, float]] = {}
    for (kind, *_), (times, mib) in once.items():
        entry = found.setdefault(kind, {'count': 0, 'mib': 0.0})
        entry['count'] += times
        entry['mib'] += times * mib
    return found


def cycles(text: str) -> int:
    """The TPU compiler's estimate of a compiled program's cycles, without its collectives; 0 where
    it gives none.
    """
    total = 0
    for times, scheduled, line in _lines(text):
        found = re.search(r'"estimated_cycles":"(\d+)"', line)
        total += times * int(found[1]) if found and scheduled else 0
    return total


def _lines(text: str) -> Iterator[tuple[int, bool, str]]:
    """The instructions of a compiled program, each with how often it runs and whether it is one
    that is scheduled, not a part of one.
    """
    parts: dict[str, list[str]] = {}
    current, entry = [], ''
    for line in text.splitlines():
        header = re.match(r'(ENTRY )?%?(\S+) \(.*\{$', line)
        if header:
            current = parts.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            current.append(line)

    def visit(name: str, times: int, scheduled: bool) -> Iterator[tuple[int, bool, str]]:
        for line in parts.get(name, ()):
            yield times, scheduled, line
            loop = re.search(r'condition=%?([^\s,]+), body=%?([^\s,]+)', line)
            if loop:
                limits = re.findall(r's32\[\]\S* constant\((\d+)\)', '\n'.join(parts[loop[1]]))
                turns = int(limits[0]) if limits else 1
                yield from visit(loop[2], times * turns, scheduled)
            for called in re.findall(r'calls=%?([^\s,)]+)', line):
                yield from visit(called, times, False)

    yield from visit(entry, 1, True)
