r"""Runs every benchmark that wants an accelerator, within a budget of time.

    bash experiments/benchmarks/device.sh --out=device

Writes device.json and device.md into the folder --out after every piece, so that what is measured
stays when the run is cut. A piece that takes longer than its limit, or for which no time is left,
is named with the rows that it has. Batches are for 80 GB a device, and smaller where there is less.
On CPU, or with --tiny, all pieces run with tiny models, to see that they run.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).parent
CONFIGS = os.path.relpath(HERE.parents[1] / 'configs')
TINY = [
    f'--config.model.{tower}.{size}'
    for tower in ('image', 'text')
    for size in ('width=64', 'heads=1', 'mlp_dim=64', 'depth=1')
]
DESCRIBE = """
import json, jax
device = jax.devices()[0]
limit = (device.memory_stats() or {}).get('bytes_limit')
print(json.dumps({'platform': device.platform, 'kind': device.device_kind,
                  'devices': jax.device_count(), 'bytes_limit': limit, 'jax': jax.__version__}))
"""


class Piece(NamedTuple):
    """A benchmark: its script and arguments, and the seconds that it may take."""

    name: str
    seconds: int
    script: str
    arguments: list[str]
    missing: str = ''  # why it cannot run here


def scaled(batch: int, device: dict[str, Any], tiny: bool) -> int:
    """The batch of a device: a power of two less where a device has less than 80 GB."""
    if tiny:
        return 2 * device['devices']
    share = min(0.0, math.log2((device['bytes_limit'] or 8e10) / 7e10))
    return max(1, round(batch * 2 ** math.floor(share))) * device['devices']


def train_step(model: str, batch: int, *more: str) -> list[str]:
    """Arguments of train_step.py for a config of the papers' sizes on few devices."""
    config = f'--config={CONFIGS}/clip_vit_{model}.py'
    return [config, f'--config.batch_size={batch}', '--config.mesh.fsdp=1', *more]


def pieces(device: dict[str, Any], tiny: bool) -> list[Piece]:
    """All pieces, the most important ones first."""
    found = []
    attention = {'gpu': 'cudnn,xla', 'tpu': 'short,xla'}.get(device['platform'], 'xla')
    steps, sizes = (['--steps=1'], TINY) if tiny else (['--steps=10'], [])
    for model, batch, remat, seconds in (
        ('b32', 1024, 'dots,none', 75),
        ('b16', 512, 'dots,none', 75),
        ('l14', 256, 'full,dots', 80),
        ('h14', 128, 'full,dots', 80),
    ):
        remat = remat.partition(',')[0] if tiny else remat
        vary = ['--vary', f'model.remat={remat}', f'model.attention={attention}']
        arguments = train_step(model, scaled(batch, device, tiny), *steps, *sizes, *vary)
        found.append(Piece(f'train step, {model}', seconds, 'train_step.py', arguments))
    b32 = train_step('b32', scaled(1024, device, tiny), *sizes)
    torch = [f'{name} is not installed' for name in ('torch', 'open_clip') if not has(name)]
    missing = ', '.join(torch)
    found.append(Piece('open_clip', 75, 'train_step.py', [*b32, *steps, '--torch'], missing))
    batches, more = [32_768, 65_536, 262_144], ['--dim=768', '--steps=3']
    if tiny:
        batches, more = [256, 512], ['--dim=16', '--steps=1', '--block-size=64']
    loss = ['--implementations', 'gather', '--batch', *map(str, batches), *more]
    found.append(Piece('loss', 60, 'loss.py', loss))
    flags = ['--vary', 'compiler_options=auto,auto xla_gpu_deterministic_ops=true']
    on_gpu = '' if device['platform'] == 'gpu' else 'it is an option for GPUs'
    found.append(
        Piece('deterministic', 45, 'train_step.py', [*b32, *steps, *flags], missing=on_gpu)
    )
    turns = ['--steps=2', '--turns=1'] if tiny else ['--steps=20', '--turns=2']
    found.append(Piece('input overlap', 45, 'overlap.py', [*b32, *turns]))
    embed = ['--preset=ViT-B-32', '--images=16384', '--batch=512', f'--threads={os.cpu_count()}']
    embed = ['--images=64', '--batch=16', '--repeats=1'] if tiny else [*embed, '--repeats=3']
    found.append(Piece('embed', 45, 'embed.py', embed))
    turns = ['--every=2', '--turns=1'] if tiny else ['--every=30', '--turns=3']
    found.append(Piece('save', 60, 'save.py', [*b32, *turns]))
    return found


def has(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def run(piece: Piece, seconds: float) -> dict[str, Any]:
    """Runs a piece and returns what it printed, also if its time is up or it fails."""
    report: dict[str, Any] = {'name': piece.name, 'status': 'done', 'limit': round(seconds)}
    if piece.missing:
        return {**report, 'status': f'not measured: {piece.missing}'}
    if seconds < 5:
        return {**report, 'status': 'not measured: the time is up'}
    command = [sys.executable, str(HERE / piece.script), *piece.arguments]
    report['command'] = ' '.join(['python', os.path.relpath(command[1]), *piece.arguments])
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(seconds)
            if code:
                err.seek(0)
                last = err.read().decode(errors='replace').strip().splitlines()[-1:]
                report['status'] = f'failed: {"".join(last)[:200] or f"exit code {code}"}'
        except subprocess.TimeoutExpired:
            report['status'] = f'cut after {seconds:.0f} s'
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        text = out.read().decode(errors='replace')
    report |= {'seconds': round(time.monotonic() - began, 1), **parsed(text)}
    return report


def parsed(text: str) -> dict[str, Any]:
    """The rows of the table that a script printed, and its other lines."""
    lines = text.splitlines()
    table = [re.split(r' *\| *', line.strip())[1:-1] for line in lines if line.startswith('|')]
    header, _, *rows = table if len(table) > 1 else ([], [])
    return {
        'notes': [line for line in lines if line.strip() and not line.startswith('|')],
        'rows': [dict(zip(header, row, strict=True)) for row in rows],
    }


def markdown(device: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """Everything as Markdown."""
    lines = [f'# {device["devices"]} x {device["kind"]}, JAX {device["jax"]}', '']
    for report in reports:
        done = report['status'] == 'done'
        lines += [f'## {report["name"]}', '']
        lines += [] if done else [f'{report["status"]}.', '']
        lines += [f'{note}  ' for note in report.get('notes', [])]
        if rows := report.get('rows'):
            lines += ['', f'| {" | ".join(rows[0])} |', '|---' * len(rows[0]) + '|']
            lines += [f'| {" | ".join(row.values())} |' for row in rows]
        lines += ['', f'`{report["command"]}`', ''] if 'command' in report else []
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=pathlib.Path, required=True, help='the folder for results')
    parser.add_argument('--seconds', type=float, default=510, help='for all pieces together')
    parser.add_argument('--tiny', action='store_true', help='tiny models (on CPU: always)')
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    described = subprocess.run([sys.executable, '-c', DESCRIBE], stdout=subprocess.PIPE, check=True)
    device = json.loads(described.stdout.splitlines()[-1])
    args.out.mkdir(parents=True, exist_ok=True)
    reports = []
    tiny = args.tiny or device['platform'] == 'cpu'
    for piece in pieces(device, tiny):
        left = end - time.monotonic()
        reports.append(run(piece, left if tiny else min(piece.seconds, left)))
        print(f'{piece.name}: {reports[-1]["status"]}', file=sys.stderr, flush=True)
        content = {'device': device, 'tiny': tiny, 'pieces': reports}
        (args.out / 'device.json').write_text(json.dumps(content, indent=1) + '\n')
        (args.out / 'device.md').write_text(markdown(device, reports))
    print((args.out / 'device.md').read_text())


if __name__ == '__main__':
    main()
