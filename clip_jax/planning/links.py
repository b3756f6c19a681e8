"""What a compiled program sends over slow links, and what a device does meanwhile."""

import math
import re

import numpy as np

from clip_jax.planning import hlo
from clip_jax.planning.program import Instruction, Program

# What TPU slices send each other are transfers through their hosts.
TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
WORK = ('fusion', 'convolution', 'dot', 'while')
STARTED, DONE = 'async-collective-start', 'async-collective-done'  # fusions of libtpu


def over_slices(program: Program, slices: int, devices: int) -> dict[str, dict[str, float]]:
    """Counts the collectives between slices.

    Args:
        program: the compiled program of one device.
        slices: the number of slices.
        devices: the number of devices of all slices, those of a slice one after another.

    Returns:
        By kind, the `count` per step and the `mib` that a device has in them.
    """
    found: dict[str, dict[str, float]] = {}
    for run in program.runs():
        instruction = run.instruction
        kind = instruction.opcode.removesuffix('-start')
        transfer = TRANSFER.search(instruction.line) if kind == 'send' else None
        if transfer:
            kind, arrays = transfer[1].lower().replace('_', '-'), instruction.results[:1]
        elif kind in hlo.COLLECTIVES and _crosses(instruction.line, devices // slices):
            arrays = instruction.results
        else:
            continue
        entry = found.setdefault(kind, {'count': 0, 'mib': 0.0})
        entry['count'] += run.times
        entry['mib'] += run.times * sum(x.unpadded_bytes for x in arrays) / hlo.MIB
    return found


def _crosses(line: str, size: int) -> bool:
    """Whether a collective is between devices of several slices of `size` devices."""
    return any(len({i // size for i in group}) > 1 for group in groups(line, 2 * size))


def groups(line: str, devices: int) -> list[list[int]]:
    """The groups of devices that a collective is in, or the pairs that send and receive.

    Args:
        line: its instruction.
        devices: the number of devices that no group stands for: all of them.
    """
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})?\}', line)
    if listed:
        named = re.findall(r'\{([\d,]+)\}', listed[1] or '')
        return [[int(i) for i in group.split(',')] for group in named] or [[*range(devices)]]
    # [groups, size]<=[shape]T(order): all devices in this shape, transposed, then split.
    counted = re.search(r'replica_groups=\[([\d,]+)\]<=(\S+)', line)
    if counted:
        return _placed(counted[2]).reshape(_numbers(counted[1])).tolist()
    # mesh['a'=2,'b'=4], device_ids=([shape]T(order)) {'b'}: groups are along some axes.
    mesh = re.search(r'replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}', line)
    return _along(*mesh.groups()) if mesh else []


def _along(sizes: str, ids: str | None, axes: str) -> list[list[int]]:
    """The groups along axes of a mesh; a part of an axis is `'a':(size before)size`."""
    whole = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    placed = _placed(ids) if ids else np.arange(math.prod(whole.values()))
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    own = {name: (int(b or 1), int(n or whole[name])) for name, b, n in parts}
    shape: list[int] = []
    along: list[int] = []
    for name, size in whole.items():
        before, part = own.get(name, (size, 1))
        shape += [before, part, size // (before * part)]
        along += [len(shape) - 2] if name in own else []
    grid = np.moveaxis(placed.reshape(shape), along, range(-len(along), 0))
    return grid.reshape(-1, math.prod(shape[i] for i in along)).tolist()


def _placed(text: str) -> np.ndarray:
    """All devices as `[shape]T(order)` places them: in this shape, transposed."""
    shape, *order = [_numbers(x) for x in re.findall(r'\d+(?:,\d+)*', text)]
    return np.arange(math.prod(shape)).reshape(shape).transpose(*order or [range(len(shape))])


def _numbers(text: str) -> list[int]:
    return [int(i) for i in text.split(',')]


def overlapped(program: Program) -> dict[str, int]:
    """Counts the collectives that are started and waited for later.

    Args:
        program: the compiled program of one device, scheduled.

    Returns:
        The count per step of those that are `asynchronous`, transfers between slices too, and of
        those of them `with_work`: between start and end, the device computes.
    """
    count = {'asynchronous': 0, 'with_work': 0}
    # By the name of the end: the number of computing instructions when it started.
    open_since: dict[tuple[str, str], int] = {}
    done = 0
    for run in program.scheduled():
        instruction = run.instruction
        if started := _start_of(instruction):
            since = open_since.pop((run.computation, started), None)
            if since is not None:
                count['asynchronous'] += run.times
                count['with_work'] += run.times * (done > since)
        elif _is_start(instruction):
            open_since[run.computation, instruction.name] = done
        else:
            done += instruction.opcode in WORK or _calls_library(instruction)
    return count


def _is_start(instruction: Instruction) -> bool:
    kind = instruction.opcode
    if kind == 'fusion':
        return instruction.name.startswith(STARTED)
    if kind == 'recv':
        return bool(TRANSFER.search(instruction.line))
    return kind.endswith('-start') and kind.removesuffix('-start') in hlo.COLLECTIVES


def _start_of(instruction: Instruction) -> str:
    """The name of the instruction that started what this one waits for; '' if it waits for none."""
    kind = instruction.opcode
    if kind == 'fusion' and instruction.name.startswith(DONE):
        return instruction.name.replace(DONE, STARTED)
    if kind == 'recv-done' or (kind.removesuffix('-done') in hlo.COLLECTIVES and '-done' in kind):
        return instruction.operands[0]
    return ''


def _calls_library(instruction: Instruction) -> bool:
    return instruction.is_kernel or '="__cu' in instruction.line  # cuBLAS and cuDNN
