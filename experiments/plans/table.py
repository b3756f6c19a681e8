"""Prints the plans of this folder (clip-jax plan --out=NAME.json) as a table."""

import json
from pathlib import Path

COLUMNS = (
    'plan',
    'topology',
    'batch',
    'mesh',
    'microbatches, remat, loss',
    'GiB a chip',
    'of these scratch',
    'at peak s',
    'compiler s, MFU',
    'roofline s, MFU',
    'schedules s, MFU',
    'bfloat16 FLOPs',
    'all-gathers',
    'compiled in s',
)


def row(name: str, plan: dict) -> list[str]:
    """One plan as cells."""
    mesh = 'x'.join(str(size) for size in plan['mesh'].values())
    needs = f'{plan["needs_mib"] / 1024:.1f}' if plan['needs_mib'] else 'more'
    verdict = f'{needs} of {plan["hbm_mib"] / 1024:.0f}'
    cells = [
        name,
        plan['topology'],
        f'{plan["batch_size"]:,}',
        mesh,
        f'{plan["microbatches"]}, {plan["remat"]}, {plan["loss"]}',
        verdict if plan['fits'] else f'**does not fit**: {verdict}',
    ]
    if 'seconds' not in plan:
        return [*cells, *['-'] * 7, f'{plan["compile_seconds"]:.0f}']
    share = plan['tflop_by_type'].get('bfloat16', 0) / plan['step_tflop']
    return [
        *cells,
        f'{plan["memory_mib"]["scratch"] / 1024:.1f}',
        f'{plan["seconds_at_peak"]:.3f}',
        *(estimate(plan, name) for name in ('compiler', 'roofline', 'schedule')),
        f'{share:.1%}',
        str(plan['collectives'].get('all-gather', {'count': 0})['count']),
        f'{plan["compile_seconds"]:.0f}',
    ]


def estimate(plan: dict, name: str) -> str:
    """Seconds and MFU by one of the estimates of a plan."""
    if name not in plan['seconds']:
        return '-'
    return f'{plan["seconds"][name]:.3f}, {plan["mfu"][name]:.0%}'


def main() -> None:
    print('| ' + ' | '.join(COLUMNS) + ' |')
    print('|' + '---|' * len(COLUMNS))
    for path in sorted(Path(__file__).parent.glob('*.json')):
        plan = json.loads(path.read_text())
        print('| ' + ' | '.join(row(path.stem, plan)) + ' |')
        if 'remedy' in plan:
            changes = ', '.join(f'{k}={v}' for k, v in plan['remedy']['config'].items())
            print('| ' + ' | '.join(row(f'with {changes}', plan['remedy']['plan'])) + ' |')


if __name__ == '__main__':
    main()
