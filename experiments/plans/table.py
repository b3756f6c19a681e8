"""Prints the plans of this folder (clip-jax plan --schedules --out=NAME.json) as a table, beside
those of the same name in before/.
"""

import json
from pathlib import Path

COLUMNS = (
    'plan',
    'topology',
    'batch',
    'mesh',
    'remat',
    'GiB a chip',
    'compiler s',
    'roofline s',
    'schedules s',
    'MFU by schedules',
    'all-gathers',
    'compiled in s',
)
HERE = Path(__file__).parent


def main() -> None:
    print('| ' + ' | '.join(COLUMNS) + ' |')
    print('|' + '---|' * len(COLUMNS))
    names = {path.name for folder in (HERE, HERE / 'before') for path in folder.glob('*.json')}
    for name in sorted(names):
        plan, before = read(HERE / name), read(HERE / 'before' / name)
        print('| ' + ' | '.join(row(Path(name).stem, plan, before)) + ' |')


def read(path: Path) -> dict:
    """A plan; {} if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def row(name: str, plan: dict, before: dict) -> list[str]:
    """One plan as cells, each with what it was before; at least one of the two exists."""
    last = plan or before
    return [
        name,
        last['topology'],
        f'{last["batch_size"]:,}',
        'x'.join(str(size) for size in last['mesh'].values() if size > 1),
        last['remat'],
        f'{changed(memory(before), memory(plan))} of {last["hbm_mib"] / 1024:.0f}',
        *(
            changed(estimate(before, which), estimate(plan, which))
            for which in ('compiler', 'roofline', 'schedule')
        ),
        changed(utilization(before), utilization(plan)),
        str(last['collectives'].get('all-gather', {'count': 0})['count']),
        f'{last["compile_seconds"]:.0f}',
    ]


def changed(before: str, now: str) -> str:
    """Two values, or the one that there is; the one of now is bold."""
    return ' → '.join([before] * bool(before) + [f'**{now}**'] * bool(now))


def memory(plan: dict) -> str:
    """GiB on a chip."""
    return f'{plan["needs_mib"] / 1024:.1f}' if plan else ''


def estimate(plan: dict, which: str) -> str:
    """Seconds by one of the estimates."""
    seconds = plan.get('seconds', {}).get(which)
    return f'{seconds:.3f}' if seconds else ''


def utilization(plan: dict) -> str:
    """MFU by the schedules."""
    share = plan.get('mfu', {}).get('schedule')
    return f'{share:.0%}' if share else ''


if __name__ == '__main__':
    main()
