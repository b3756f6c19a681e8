"""Prints the plans for GPUs of this folder (clip-jax plan --out=NAME.json) as a table."""

import json
from pathlib import Path

COLUMNS = (
    'plan',
    'topology',
    'batch',
    'remat, loss',
    'GiB a GPU',
    'of these scratch',
    'at peak ms',
    'roofline ms',
    'MFU by it',
    'GB a GPU',
    'kernels a step',
    'collectives',
    'compiled in s',
)


def row(name: str, plan: dict) -> list[str]:
    """One plan as cells."""
    kernels = plan['gpu_kernels']
    makers = ', '.join(f'{maker} {found["count"]:,}' for maker, found in sorted(kernels.items()))
    collectives = ', '.join(
        f'{kind} {found["count"]} ({found["mib"]:,.0f} MiB)'
        for kind, found in sorted(plan['collectives'].items())
    )
    verdict = f'{plan["needs_mib"] / 1024:.1f} of {plan["hbm_mib"] / 1024:.0f}'
    return [
        name,
        plan['topology'],
        f'{plan["batch_size"]:,}',
        f'{plan["remat"]}, {plan["loss"]}',
        verdict if plan['fits'] else f'**does not fit**: {verdict}',
        f'{plan["memory_mib"]["scratch"] / 1024:.1f}',
        f'{1e3 * plan["seconds_at_peak"]:.1f}',
        f'{1e3 * plan["seconds"]["roofline"]:.1f}',
        f'{plan["mfu"]["roofline"]:.0%}',
        f'{sum(found["gb"] for found in kernels.values()):.0f}',
        makers,
        collectives,
        f'{plan["compile_seconds"]:.0f}',
    ]


def main() -> None:
    print('| ' + ' | '.join(COLUMNS) + ' |')
    print('|' + '---|' * len(COLUMNS))
    for path in sorted(Path(__file__).parent.glob('*.json')):
        print('| ' + ' | '.join(row(path.stem, json.loads(path.read_text()))) + ' |')


if __name__ == '__main__':
    main()
