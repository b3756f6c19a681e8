"""Compiled programs as data: the instructions of an optimized HLO text, and how often each runs.

The text is read with regular expressions, which fit the HLO of jaxlib 0.10 and of libtpu and the
CUDA plugin of the same time; tests pin them.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'pred': 1, 's8': 1, 'u8': 1}
BYTES |= {'f64': 8, 's64': 8, 'u64': 8, 'c64': 8, 'token': 0}
CALLED = {
    'while': 'body=',
    'call': 'to_apply=',
    'conditional': r'(?:branch_computations=\{|true_computation=)',
}
HBM = 0  # the memory space of arrays whose layout names none


class Array(NamedTuple):
    """An array in a compiled program."""

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]  # its dimensions, the one that varies fastest first; () if not known
    tile: tuple[int, ...]  # () if it is not tiled
    space: int  # the memory space: HBM, or 1 for a TPU's vector memory

    @property
    def bytes(self) -> int:
        """Its size in memory, with the padding of its tiles."""
        shape = [self.shape[i] for i in self.order] or [*self.shape][::-1]
        padded = shape + [1] * (len(self.tile) - len(shape))
        for i, multiple in enumerate(reversed(self.tile)):
            padded[i] = math.ceil(padded[i] / multiple) * multiple
        return math.prod(padded) * BYTES.get(self.dtype, 4)

    @property
    def unpadded_bytes(self) -> int:
        """The bytes of its numbers."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 4)


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    name: str
    opcode: str
    results: tuple[Array, ...]  # a tuple's arrays, nested ones too, in order
    operands: tuple[str, ...]  # names of instructions of the same computation
    line: str

    @property
    def op_name(self) -> str:
        """What JAX calls the operation: the names of its modules and transformations."""
        return _first(r'op_name="([^"]*)"', self.line)

    @property
    def calls(self) -> str:
        """The computation that it runs: of a fusion, a call, the body of a loop; '' if none."""
        return _first(CALLED.get(self.opcode, r'calls=') + r'%?([^\s,)}]+)', self.line)

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate of its cycles; 0 if there is none."""
        return int(_first(r'"estimated_cycles":"(\d+)"', self.line) or 0)

    def stated(self, what: str) -> int:
        """What a kernel says that it needs: `flops`, `transcendentals` or `bytes_accessed`."""
        return int(_first(rf'"{what}":"(\d+)"', self.line) or 0)

    @property
    def is_root(self) -> bool:
        """Whether it gives the result of its computation."""
        return self.line.lstrip().startswith('ROOT ')

    @property
    def is_kernel(self) -> bool:
        """Whether it calls a Pallas kernel of a TPU."""
        return 'custom_call_target="tpu_custom_call"' in self.line

    @property
    def kernel(self) -> str:
        """The name of the Pallas kernel that it calls; '' if none."""
        return _first(r'([^/]+)/pallas_call$', self.op_name) if self.is_kernel else ''


class Run(NamedTuple):
    """An instruction and how often it runs in one call of the program."""

    instruction: Instruction
    times: int
    computation: str  # that it is in
    scheduled: bool  # by itself, not as a part of a fusion


class Program(NamedTuple):
    """A compiled program."""

    entry: str
    computations: dict[str, dict[str, Instruction]]  # instructions by name, in their order

    def runs(self) -> Iterator[Run]:
        """All instructions that run, those inside of fusions and loops too."""
        return self._runs(self.entry, 1, True)

    def scheduled(self) -> Iterator[Run]:
        """The instructions that are scheduled by themselves: what a device does, one by one."""
        return (run for run in self.runs() if run.scheduled)

    def _runs(self, name: str, times: int, scheduled: bool) -> Iterator[Run]:
        for instruction in self.computations.get(name, {}).values():
            yield Run(instruction, times, name, scheduled)
            turns = self._turns(instruction) if instruction.opcode == 'while' else 1
            # Loops, calls and the first branch of a condition, which stands for all of them, are
            # scheduled one by one.
            whole = instruction.opcode in ('while', 'call', 'conditional')
            yield from self._runs(instruction.calls, times * turns, scheduled and whole)

    def _turns(self, loop: Instruction) -> int:
        """How often the body of a loop runs: as stated, or the limit of its condition; else 1."""
        stated = _first(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
        if stated:
            return int(stated)
        condition = self.computations.get(_first(r'condition=%?([^\s,)]+)', loop.line), {})
        limits = [_first(r's32\[\]\S* constant\((\d+)\)', x.line) for x in condition.values()]
        return int(next(filter(None, limits), 1))

    def arrays(self, run: Run) -> list[tuple[Array, ...]]:
        """The arrays of each operand of an instruction; () for one that is not defined."""
        around = self.computations[run.computation]
        return [around[x].results if x in around else () for x in run.instruction.operands]


def read(text: str) -> Program:
    """Reads a compiled program.

    Args:
        text: its optimized HLO, as `compiled.as_text()` gives it.

    Returns:
        Its instructions by computation. What is no instruction is left out.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ''
    for line in text.splitlines():
        header = re.match(r'(ENTRY )?%?(\S+) \(.*\{$', line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif found := _instruction(line):
            current[found.name] = found
    return Program(entry, computations)


def _instruction(line: str) -> Instruction | None:
    begun = re.match(r'\s+(?:ROOT )?%?([^\s%=]+) = ', line)
    if not begun:
        return None
    rest = line[begun.end() :]
    end = _closing(rest) if rest.startswith('(') else rest.find(' ')
    opcode = re.match(r'\s*([\w\-]+)', rest[end:])
    if not opcode:
        return None
    operands = rest[end + opcode.end() :]
    names = re.findall(r'%([^\s,()]+)', operands[: _closing(operands)])
    return Instruction(begun[1], opcode[1], tuple(arrays(rest[:end])), tuple(names), line)


def _closing(text: str) -> int:
    """Where the parenthesis that a text begins with has been closed."""
    depth = 0
    for found in re.finditer(r'[()]', text):
        depth += 1 if found[0] == '(' else -1
        if not depth:
            return found.end()
    return len(text)


def arrays(text: str) -> list[Array]:
    """The arrays that a type names, for instance `(f32[8,128]{1,0:T(8,128)S(1)}, u32[])`."""
    found = re.findall(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?', text)
    return [_array(*one) for one in found]


@functools.lru_cache(1 << 14)
def _array(dtype: str, shape: str, layout: str) -> Array:
    order, _, tiles = layout.partition(':')
    tile, space = _first(r'T\(([\d,]+)\)', tiles), _first(r'S\((\d+)\)', tiles)
    return Array(dtype, _numbers(shape), _numbers(order), _numbers(tile), int(space or HBM))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(',') if x)


def _first(pattern: str, text: str) -> str:
    """The first group of a pattern where it is first found in a text, else ''."""
    found = re.search(pattern, text)
    return found[1] if found else ''
