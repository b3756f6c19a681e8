"""Static schedules: the cycles of each instruction in the machine code that libtpu made of it.

Libtpu writes the final code of each instruction to a file when asked to. A line is a bundle, what
the units of a core do in one cycle; a bundle in a loop counts as often as the loop runs. Waiting
for memory is not in it, so the larger of a schedule and a roofline is an estimate of the time.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from clip_jax.planning import program

FILES = '*-final_bundles.txt'
_BUNDLE = re.compile(r'\s*(?:0x[0-9a-f]+|0)\s+(LB)?\w*\s*:\s*((?:> ?)*) ?\{( *\})?')
# %p7_p8 = scmp.ge.s32.totalorder %s10_s10, 112 /* loop exit test */
_EXIT = re.compile(r'(%\w+) = scmp\.ge\.s32\.totalorder (%\w+), (\d+) /\* loop exit test')
_BACK = re.compile(r'sbr\.rel \(!(%\w+)\)')
_STEP = re.compile(r'(%\w+) = sadd\.s32 (\d+), %')
_STAGE = re.compile(r'iteration index, stage = (\d+)')


class Loop(NamedTuple):
    """What has been read of a loop."""

    cycles: float  # of one turn
    stage: int  # the last stage of its software pipeline


def flags(folder: str | Path) -> str:
    """The value of LIBTPU_INIT_ARGS that has libtpu write schedules into a folder."""
    return (
        f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
        '--xla_jf_dump_llo_pass_label_regex=^final_bundles$'
    )


def clear(folder: Path) -> None:
    """Deletes the schedules of an earlier compilation."""
    for path in folder.iterdir():
        path.unlink()


def read(folder: Path) -> dict[str, float]:
    """Reads the schedules in a folder.

    Args:
        folder: where libtpu wrote them.

    Returns:
        Cycles of one call of each instruction, by the name that it has in the optimized HLO.

    Raises:
        ValueError: there are none.
    """
    found = {}
    for path in sorted(folder.glob(FILES)):
        name = re.fullmatch(r'\d+-(.*)-\d+-final_bundles\.txt', path.name)
        if name:
            found[name[1]] = cycles(path.read_text().splitlines())
    if not found:
        raise ValueError(
            '--schedules: libtpu wrote none; expected it to compile: unset '
            'JAX_COMPILATION_CACHE_DIR, or plan without --schedules'
        )
    return found


def matched(compiled: program.Program, found: Mapping[str, float]) -> dict[str, float]:
    """Adds the cycles of instructions that have no schedule of their own.

    Libtpu makes code once for instructions that are alike: those with the same operation, arrays
    and estimate of cycles.

    Args:
        compiled: the program.
        found: cycles by the name of the instruction, as `read` gives them.

    Returns:
        The same with more names.
    """

    def kind(run: program.Run) -> tuple:
        one = run.instruction
        return one.opcode, one.results, tuple(compiled.arrays(run)), one.cycles

    runs = [run for run in compiled.scheduled() if run.instruction.cycles]
    alike = {
        kind(run): found[run.instruction.name] for run in runs if run.instruction.name in found
    }
    more = {run.instruction.name: alike[kind(run)] for run in runs if kind(run) in alike}
    return {**more, **found}


def cycles(lines: Iterable[str]) -> float:
    """Counts the bundles of a schedule, those in loops as often as the loops run.

    Args:
        lines: the file. A loop whose number of turns is known only when it runs counts once.
    """
    limits: dict[str, tuple[str, int]] = {}  # by the predicate of an exit test: counter, limit
    steps: dict[str, int] = {}
    stack = [Loop(0, 0)]
    for line, bundle, depth, later in _bundles(lines):
        if 'scmp.ge' in line:
            limits |= {exit[1]: (exit[2], int(exit[3])) for exit in _EXIT.finditer(line)}
        if 'sadd.s32' in line:
            steps |= {step[1]: int(step[2]) for step in _STEP.finditer(line)}
        back = _BACK.search(line) if 'sbr.rel' in line else None
        ends = back is not None and back[1] in limits and len(stack) > 1
        while not ends and len(stack) - 1 > max(depth, later):
            stack = _closed(stack, 1)  # a loop whose turns are not known
        if bundle[1]:
            stack.append(Loop(0, 0))
        stack[-1] = Loop(stack[-1].cycles + 1, max(_stage(line), stack[-1].stage))
        if back and ends:
            counter, limit = limits.pop(back[1])
            # The first stages of a pipeline fill it: only loads run, not the body.
            turns = math.ceil(limit / steps.get(counter, 1)) - stack[-1].stage
            stack = _closed(stack, max(turns, 1))
    while len(stack) > 1:
        stack = _closed(stack, 1)
    return stack[0].cycles


def _bundles(lines: Iterable[str]) -> list[tuple[str, re.Match, int, int]]:
    """The bundles of a schedule.

    Returns:
        Of each its line, the match of it, the loops that it is marked to be in, without the one
        that it begins, and how many loops go on after it. A bundle that was moved into a loop from
        around it is marked as if it were not in the loop.
    """
    found = [(line, match) for line in lines if (match := _BUNDLE.match(line))]
    bundles, later = [], 0
    for line, match in reversed(found):
        # The depth of empty bundles and of a branch back is not marked.
        depth = later if match[3] else max(match[2].count('>') - bool(match[1]), 0)
        bundles.append((line, match, depth, later))
        later = depth if match[1] else max(depth, later)
    return bundles[::-1]


def _stage(line: str) -> int:
    return max(map(int, _STAGE.findall(line)), default=0) if 'stage = ' in line else 0


def _closed(stack: list[Loop], turns: int) -> list[Loop]:
    """The loops around the innermost one, which runs so often."""
    *around, outer, inner = stack
    return [*around, outer._replace(cycles=outer.cycles + turns * inner.cycles)]
