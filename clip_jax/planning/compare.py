"""Two plans side by side."""

import os
from collections.abc import Iterator
from typing import Any

from clip_jax.planning import estimates, tables
from clip_jax.runtime import foreign_json

SECONDS = dict.fromkeys(estimates.NAMES, float)
# What is compared of the JSON of a plan; a plan that does not fit has no estimates.
SCHEMA = {
    'topology': str,
    'per_device': int,
    'memory_mib': {foreign_json.ANY: float},
    'needs_mib': (float, None),
    'seconds': SECONDS,
    'mfu': SECONDS,
    'parts': [{'part': str, 'direction': str, 'seconds': SECONDS, 'bytes': int, 'share': float}],
}
NEEDED = ('topology', 'per_device', 'memory_mib')
PART = ('part', 'direction', 'seconds', 'bytes')
Row = tuple[str, float, float]


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the JSON of a plan.

    Args:
        path: a file that `clip-jax plan --out` wrote.

    Raises:
        ValueError: it is not a plan.
        OSError: it cannot be read.
    """
    plan = foreign_json.read(path, SCHEMA)
    missing = [key for key in NEEDED if key not in plan]
    missing += [key for row in plan.get('parts', ()) for key in PART if key not in row]
    if missing:
        raise ValueError(
            f'{path}: is not a plan: it has no {missing[0]!r}; expected a file that '
            'clip-jax plan --out wrote'
        )
    return plan


def table(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Two plans as a text table: the old value, the new one, and how much of the old it is.

    What only one of them has is 0 in the other; of the estimates, those that both have are shown.
    """
    lines = [f'{"":36} {"old":>12} {"new":>12} {"new/old":>8}']
    lines += [f'{"topology":36} {old["topology"]:>12} {new["topology"]:>12}']
    for name, before, after in [
        ('pairs a device', old['per_device'], new['per_device']),
        *_memory(old, new),
        *_estimates(old, new),
    ]:
        ratio = f'{after / before:8.3f}' if before else f'{"-":>8}'
        lines.append(f'{name:36} {before:12,.5g} {after:12,.5g} {ratio}')
    return '\n'.join(lines)


def _memory(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Row]:
    kinds = dict.fromkeys([*old['memory_mib'], *new['memory_mib']])
    for kind in kinds:
        yield (
            f'memory, MiB: {kind}',
            old['memory_mib'].get(kind, 0.0),
            new['memory_mib'].get(kind, 0.0),
        )
    if old.get('needs_mib') and new.get('needs_mib'):
        yield 'memory, MiB: all', old['needs_mib'], new['needs_mib']


def _estimates(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Row]:
    before, after = (
        {tables.label(row): row for row in plan.get('parts', ())} for plan in (old, new)
    )
    labels = list(dict.fromkeys([*before, *after]))
    names = [name for name in old.get('seconds', {}) if name in new.get('seconds', {})]

    def part(label: str, rows: dict[str, Any], name: str) -> float:
        return 1e3 * rows[label]['seconds'].get(name, 0.0) if label in rows else 0.0

    for name in names:
        yield f'{name}, ms', 1e3 * old['seconds'][name], 1e3 * new['seconds'][name]
        if name in old.get('mfu', {}) and name in new.get('mfu', {}):
            yield f'{name}, MFU %', 100 * old['mfu'][name], 100 * new['mfu'][name]
        for label in labels:
            yield f'  {label}', part(label, before, name), part(label, after, name)
    sums = [sum(row['bytes'] for row in rows.values()) / 1e9 for rows in (before, after)]
    if all(sums):
        yield 'HBM, GB', sums[0], sums[1]
