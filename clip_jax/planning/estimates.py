"""Estimates of the seconds of a compiled program, for one device and without collectives.

* `compiler`: the TPU compiler's own estimates of cycles. It prices 16-bit elementwise work like
  that of 32 bits, and knows nothing of what is in kernels. Not for GPUs, of whose products XLA's
  estimates are wrong.
* `roofline`: each instruction takes the time that its bytes or its products need at least.
* `schedule`: each instruction takes the larger of its roofline and its static schedule.

None was measured.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.planning import hlo, parts, program, roofline, schedules
from clip_jax.planning.program import Instruction, Program, Run
from clip_jax.planning.topologies import Chip

NAMES = ('compiler', 'roofline', 'schedule')
# Cycles of a kernel for 1,024 logits: the compiler's static schedules for v5e at 197 tokens, heads
# of 64. It is a little faster on v6e, slower with fewer tokens. Used where there are no schedules;
# of other kernels, the roofline.
KERNEL_CYCLES = {'short_attention': 8.6, 'short_attention_backward': 21.4}


def of(text: str, chip: Chip, cycles: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Estimates the seconds of a compiled program, in all and by part.

    Args:
        text: its optimized HLO.
        chip: what it runs on.
        cycles: the schedules of its instructions, as `schedules.read` gives them.

    Returns:
        `seconds` by the name of the estimate, and `parts`: a list of rows of `part`, `direction`,
        the `seconds` of each estimate, the `bytes` through HBM, and the `share` of the seconds of
        the last estimate. With schedules, `scheduled`: the share of the compiler's cycles that is
        of instructions whose schedule is known.
    """
    compiled = program.read(text)
    known = schedules.matched(compiled, cycles) if cycles is not None else None
    names = [
        name
        for name in NAMES
        if (name != 'schedule' or known is not None) and (name != 'compiler' or not chip.is_gpu)
    ]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in compiled.scheduled():
        moved = roofline.traffic(compiled, run)
        found = _seconds(compiled, run, chip, known)
        if not moved and not any(found.values()):
            continue
        where = parts.of(compiled, run)
        empty = {'seconds': dict.fromkeys(names, 0.0), 'bytes': 0}
        row = rows.setdefault(where, empty)
        row['bytes'] += run.times * moved
        for name in names:
            row['seconds'][name] += run.times * found[name]
    total = {name: sum(row['seconds'][name] for row in rows.values()) for name in names}
    ordered = sorted(rows, key=lambda where: (parts.PARTS.index(where[0]), where[1] == 'backward'))
    return {
        **({'scheduled': _scheduled(compiled, known)} if known is not None else {}),
        'seconds': total,
        'parts': [
            {
                'part': part,
                'direction': direction,
                **rows[part, direction],
                'share': _share(rows[part, direction]['seconds'], total),
            }
            for part, direction in ordered
        ],
    }


def _scheduled(compiled: Program, known: Mapping[str, float]) -> float:
    cycles = [
        (run.instruction.name, run.times * run.instruction.cycles) for run in compiled.scheduled()
    ]
    return sum(n for name, n in cycles if name in known) / max(sum(n for _, n in cycles), 1)


def _share(seconds: Mapping[str, float], total: Mapping[str, float]) -> float:
    last = list(total)[-1]
    return seconds[last] / total[last] if total[last] else 0.0


def _seconds(
    compiled: Program, run: Run, chip: Chip, known: Mapping[str, float] | None
) -> dict[str, float]:
    """Each estimate of one call of an instruction."""
    one, clock = run.instruction, chip.clock_ghz * 1e9
    least = roofline.seconds(compiled, run, chip)
    static = (known or {}).get(one.name, 0) / clock if _is_work(one) else 0
    kernel = static if known is not None else _kernel_cycles(one) / clock or least
    return {
        'compiler': kernel if one.is_kernel else one.cycles / clock,
        'roofline': least,
        'schedule': max(least, static),
    }


def _is_work(one: Instruction) -> bool:
    """Whether the schedule of an instruction counts: collectives wait for other devices."""
    kind = one.opcode.removesuffix('-start').removesuffix('-done')
    return kind not in hlo.COLLECTIVES and one.opcode not in roofline.FREE


def _kernel_cycles(one: Instruction) -> float:
    """Cycles of a kernel that has been compiled before; 0 of others."""
    return KERNEL_CYCLES.get(one.kernel, 0) * one.stated('transcendentals') / 1024
