"""Plans as text and as JSON."""

import json
from typing import Any


def verdict(report: dict[str, Any]) -> str:
    needs = report['needs_mib']
    size = 'more than available' if needs is None else f'{needs / 1024:.2f} GiB'
    of = f' of {report["hbm_mib"] / 1024:.0f} GiB' if 'hbm_mib' in report else ''
    return f'{"fits" if report["fits"] else "does NOT fit"}: {size}{of} a device'


def table(report: dict[str, Any]) -> str:
    """A plan as a text table."""
    mesh = ' x '.join(f'{name} {size}' for name, size in report['mesh'].items())
    rows = [
        ('topology', f'{report["topology"]}, {report["devices"]} devices, mesh {mesh}'),
        ('batch', f'{report["batch_size"]:,} pairs, {report["per_device"]:,} a device'),
        (
            'embedded in',
            f'{report["microbatches"]} part(s), remat {report["remat"]}, loss {report["loss"]}',
        ),
        ('parameters', f'{report["parameters"]:,}'),
        *((f'memory: {k}', f'{v:10,.1f} MiB') for k, v in report['memory_mib'].items()),
        ('verdict', verdict(report)),
        ('model FLOPs', f'{report["model_tflop"]:,.4g} T a step (3 x forward)'),
        ('all FLOPs', f'{report["step_tflop"]:,.4g} T a step (loss and recomputation included)'),
        *(
            (f'of these {dtype}', f'{count / report["step_tflop"]:.1%}')
            for dtype, count in report['tflop_by_type'].items()
        ),
    ]
    if 'seconds_at_peak' in report:
        rows.append(('at peak', f'{report["seconds_at_peak"]:.3g} s a step'))
    if report.get('kernels'):
        calls = sum(kernel['count'] for kernel in report['kernels'].values())
        rows.append(('kernels', f'{calls:,} calls of {", ".join(report["kernels"])}'))
    for kind, found in report.get('collectives', {}).items():
        rows.append((kind, f'{found["count"]:,} of {found["mib"]:,.1f} MiB in all'))
    rows.append(('compiled in', f'{report["compile_seconds"]:.0f} s'))
    lines = [f'{name:22} {text}' for name, text in rows]
    return '\n'.join([*lines, *estimates(report), *by_part(report)])


def estimates(report: dict[str, Any]) -> list[str]:
    """The estimates of a plan side by side, as lines; [] of a plan without them."""
    if 'seconds' not in report:
        return []
    seconds, mfu = report['seconds'], report['mfu']
    return [
        _line('without collectives', [f'{name:>10}' for name in seconds]),
        _line('seconds a step', [f'{value:10.4g}' for value in seconds.values()]),
        _line('MFU', [f'{mfu[name]:10.1%}' for name in seconds]),
    ]


def by_part(report: dict[str, Any]) -> list[str]:
    """Seconds, bytes and share by part, as lines; [] of a plan without estimates."""
    if not report.get('parts'):
        return []
    names = list(report['seconds'])
    heads = [*(f'{name:>10}' for name in names), f'{"GB":>10}', f'{"share":>7}']
    lines = [_line('part: ms', heads)]
    for row in report['parts']:
        cells = [f'{1e3 * row["seconds"][name]:10.2f}' for name in names]
        cells += [f'{row["bytes"] / 1e9:10.2f}', f'{row["share"]:7.1%}']
        lines.append(_line(label(row), cells))
    return lines


def label(row: dict[str, Any]) -> str:
    """The name of a part of a plan, with its direction."""
    return row['part'] + (', backward' if row['direction'] == 'backward' else '')


def _line(name: str, cells: list[str]) -> str:
    return ' '.join([f'{name:26}', *cells])


def as_json(report: dict[str, Any]) -> str:
    """A plan as JSON."""
    return json.dumps(report, indent=1) + '\n'
