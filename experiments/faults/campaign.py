"""Is a run that was killed, stopped, frozen or damaged the same in the end as one that was not?

    python experiments/faults/campaign.py kill --config=configs/quickstart.py --workdir=/tmp/faults

Trains once undisturbed and once while things happen to it, both as several processes on this
machine, and compares every loss and the last parameters bit by bit. Prints a Markdown table; exits
with 1 if anything is not as expected. Further `--config.key=value` go to `clip-jax train`.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

CLOCK = ('pairs_per_second', 'input_wait')  # numbers that depend on the clock
PATIENCE = 900  # seconds for anything
HUNG = 75  # clip-jax train's exit code for a process that waited too long; JAX may abort it before


class Attempt:
    """All processes of one `clip-jax train` on a run directory; their output goes to files."""

    def __init__(self, args: argparse.Namespace, workdir: pathlib.Path, *flags: str):
        with socket.create_server(('localhost', 0)) as server:
            port = server.getsockname()[1]
        xla = os.environ.get('XLA_FLAGS', '')
        env = {
            **os.environ,
            'XLA_FLAGS': f'{xla} --xla_force_host_platform_device_count={args.devices}',
            'JAX_PLATFORMS': 'cpu',
        }
        self.workdir, self.began = workdir, time.monotonic()
        workdir.parent.mkdir(parents=True, exist_ok=True)
        self.logs = [workdir.with_suffix(f'.{i}.log') for i in range(args.processes)]
        self.starts = [log.stat().st_size if log.exists() else 0 for log in self.logs]
        several = [f'--coordinator=localhost:{port}', f'--num-processes={args.processes}']
        self.processes = []
        for i, log in enumerate(self.logs):
            of_this = [*several, f'--process-id={i}'] if args.processes > 1 else []
            command = [sys.executable, '-c', 'from clip_jax.cli.main import main; main()', 'train']
            command += [f'--config={args.config}', f'--workdir={workdir}']
            with log.open('a') as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *args.rest, *flags, *of_this],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=env,
                    )
                )

    def said(self, process: int = 0) -> str:
        """What a process of this attempt has printed until now."""
        with self.logs[process].open() as file:
            file.seek(self.starts[process])
            return file.read()

    def step(self) -> int:
        """The last step that was printed, 0 before the first."""
        lines = [line for line in self.said().splitlines() if line.startswith('step ')]
        return int(lines[-1].split()[1].partition('/')[0].replace(',', '')) if lines else 0

    def until(self, happened: Callable[[], bool]) -> bool:
        """Waits for something; False if all processes ended before."""
        end = time.monotonic() + PATIENCE
        while not happened():
            if all(process.poll() is not None for process in self.processes):
                return False
            if time.monotonic() > end:
                raise SystemExit(f'{self.workdir}: waited {PATIENCE} s in vain; see {self.logs}')
            time.sleep(0.002)
        return True

    def signal(self, number: int, which: list[int] | None = None) -> None:
        for i in range(len(self.processes)) if which is None else which:
            if self.processes[i].poll() is None:
                self.processes[i].send_signal(number)

    def wait(self) -> list[int]:
        """Waits for the end of all processes; returns their exit codes."""
        return [process.wait(PATIENCE) for process in self.processes]


def losses(workdir: pathlib.Path) -> list[dict]:
    """All lines of the metrics, without what depends on the clock."""
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


def parameters(workdir: pathlib.Path) -> list[bytes]:
    """The bytes of all variables of the newest checkpoint."""
    import jax
    import numpy as np

    import clip_jax

    return [np.asarray(x).tobytes() for x in jax.tree.leaves(clip_jax.load(workdir).variables)]


def same(run: pathlib.Path, straight: pathlib.Path) -> bool:
    """Whether two complete runs have the same numbers and parameters, to the last bit."""
    return losses(run) == losses(straight) and parameters(run) == parameters(straight)


def straight(args: argparse.Namespace) -> pathlib.Path:
    """The undisturbed run."""
    workdir = args.workdir / 'straight'
    if not (workdir / 'summary.json').exists():
        codes = Attempt(args, workdir).wait()
        if any(codes):
            raise SystemExit(f'the undisturbed run ended with {codes}; see {workdir}.*.log')
    return workdir


def moments(
    args: argparse.Namespace,
    settings: dict[str, Any],
    rng: random.Random,
    attempt: Attempt,
    count: int,
) -> Callable[[], bool]:
    """Returns what to wait for: one after the other a moment in a step, a save, an evaluation, the
    end of a stage, if there are any, and anywhere in the first seconds, the start of the program
    included. All lie spread over the run.
    """
    folder = attempt.workdir / 'checkpoints'
    first = max(1, 0.9 * settings['total_steps'] * (count + rng.random()) / args.times)

    def saving() -> bool:
        return folder.is_dir() and any('.unsealed' in p.name for p in folder.iterdir())

    def evaluating() -> bool:
        return attempt.step() % settings['eval_every'] == 0

    def next_stage() -> bool:
        """Whether a stage of this attempt has ended; the last one has no end of that kind."""
        begun = [x for x in attempt.said().splitlines() if x.startswith('stage ')]
        return len(begun) > 1 or (bool(begun) and begun[0].split()[1] == begun[0].split()[3][:-1])

    kinds = ('step', 'save', 'evaluation', 'anywhere')
    kinds = ('stage', *kinds) if settings.get('stages') else kinds
    kind = kinds[count % len(kinds)]
    attempt.kind = kind
    if kind == 'anywhere':
        end = time.monotonic() + rng.uniform(0, args.start + 4)
        return lambda: time.monotonic() > end
    ready, longest = {
        'step': (lambda: True, 2.0),
        'save': (saving, 0.1),
        'evaluation': (evaluating, 0.5),
        'stage': (next_stage, 8.0),
    }[kind]
    delay = rng.uniform(0, longest)

    def happened() -> bool:
        if attempt.step() < first or not ready():
            return False
        time.sleep(delay)
        return True

    return happened


def over(count: int, args: argparse.Namespace) -> tuple[str, str, bool]:
    """What is said of a run that ended before all was done to it."""
    happened = f'the run was over after {count} of {args.times} times'
    return happened, 'more --config.total_steps or another --workdir is needed', False


def kill(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """kill -9 at random moments, of all processes or, every fifth time, of one: then the others
    have to end by themselves.
    """
    expected, workdir = straight(args), args.workdir / 'killed'
    settings = json.loads((expected / 'config.json').read_text())
    kinds, ends, count = collections.Counter(), [], 0
    while count < args.times:
        attempt = Attempt(args, workdir)
        if not attempt.until(moments(args, settings, rng, attempt, count)):
            yield over(count, args)
            break
        alone = args.processes > 1 and count % 5 == 4
        victims = [rng.randrange(args.processes)] if alone else None
        attempt.signal(signal.SIGKILL, victims)
        struck = time.monotonic()
        codes = attempt.wait()
        if alone:
            ends.append(time.monotonic() - struck)
        count += 1
        kinds[attempt.kind] += 1
        print(
            f'kill {count} ({attempt.kind}{", one process" if alone else ""}) at step '
            f'{attempt.step()}: exit codes {codes}',
            flush=True,
        )
    codes = Attempt(args, workdir).wait()
    shown = ', '.join(f'{n} {kind}' for kind, n in kinds.items())
    yield f'kill -9, {count} times ({shown})', f'run ended with {codes}', not any(codes)
    if ends:
        yield 'processes left alone end', f'in at most {max(ends):.1f} s', max(ends) < PATIENCE / 2
    yield 'losses and parameters', 'bit-exact', same(workdir, expected)


def term(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """SIGTERM to one process at random moments: all end well, at one step, soon."""
    expected, workdir = straight(args), args.workdir / 'terminated'
    for count in range(args.times):
        attempt = Attempt(args, workdir)
        if not attempt.until(lambda attempt=attempt: attempt.step() > 0):
            yield over(count, args)
            break
        time.sleep(rng.uniform(0, 3))
        before, struck = attempt.step(), time.monotonic()
        attempt.signal(signal.SIGTERM, [rng.randrange(args.processes)])
        codes, seconds = attempt.wait(), time.monotonic() - struck
        said = [line for line in attempt.said().splitlines() if line.startswith('stopped at step')]
        step = int(said[-1].split()[3].replace(',', '')) if said else -1
        newest = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
        ok = not any(codes) and newest == step and step - before <= 3
        yield (
            f'SIGTERM {count + 1} after step {before} was printed',
            f'exit codes {codes}, stopped and saved at step {step}, {seconds:.1f} s',
            ok,
        )
    codes = Attempt(args, workdir).wait()
    yield 'losses and parameters', 'bit-exact', same(workdir, expected)


def freeze(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """SIGSTOP of one process: the others print their stacks and end within the limit."""
    expected, workdir, limit = straight(args), args.workdir / 'frozen', args.limit
    for count in range(args.times):
        attempt = Attempt(args, workdir, f'--config.step_timeout={limit}')
        if not attempt.until(lambda attempt=attempt: attempt.step() > 0):
            yield over(count, args)
            break
        time.sleep(rng.uniform(0, 3))
        victim = count % args.processes
        alive = all(process.poll() is None for process in attempt.processes)
        attempt.signal(signal.SIGSTOP, [victim])
        struck = time.monotonic()
        others = [i for i in range(args.processes) if i != victim]
        codes = [attempt.processes[i].wait(PATIENCE) for i in others]
        seconds = time.monotonic() - struck
        stacks = all('most recent call first' in attempt.said(i) for i in others)
        attempt.signal(signal.SIGKILL, [victim])
        attempt.wait()
        yield (
            f'SIGSTOP of process {victim}, limit {limit:g} s',
            f'the others: exit codes {codes}, stacks {stacks}, after {seconds:.2f} s'
            + ('' if alive else '; they had ended before'),
            alive and {*codes} <= {HUNG, -signal.SIGABRT} and stacks and seconds <= limit,
        )
    codes = Attempt(args, workdir).wait()
    yield 'losses and parameters', 'bit-exact', same(workdir, expected)


def second(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """A second training on the directory of a running one is refused; the first continues."""
    expected, workdir = straight(args), args.workdir / 'shared'
    attempt = Attempt(args, workdir)
    attempt.until(lambda: attempt.step() > 0)
    logs = attempt.logs, attempt.starts
    other = Attempt(args, workdir)
    codes = other.wait()
    lines = [x for x in other.said().splitlines() if x.startswith('clip-jax')]  # the first's, too
    line = lines[-1] if lines else 'nothing said'
    attempt.logs, attempt.starts = logs
    yield 'a second training', f'exit codes {codes}: {line}', all(codes) and 'another' in line
    codes = attempt.wait()
    yield 'the first', f'exit codes {codes}', not any(codes)
    yield 'losses and parameters', 'bit-exact', same(workdir, expected)


def damage(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Every kind of damage to the newest checkpoint of a real run is detected, an older checkpoint
    is used, and nothing is deleted.
    """
    from clip_jax import checkpoint

    expected, copy = straight(args), args.workdir / 'damaged'
    newest, older = checkpoint.steps(checkpoint.epath.Path(expected / 'checkpoints'))[:2]
    kinds: dict[str, pathlib.Path] = {}
    for path in sorted((expected / f'checkpoints/{newest}').rglob('*')):
        if path.is_file():
            name = str(path.relative_to(expected / f'checkpoints/{newest}'))
            data = '/d/' in name
            kinds.setdefault(name.rpartition('/')[0] + '/*' if data else name, path)

    def flip(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    def zero(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        # Where there are other bytes, or nothing would change.
        start = rng.choice([i for i in range(max(1, len(content) - 64)) if any(content[i:][:64])])
        content[start : start + 64] = bytes(len(content[start : start + 64]))
        path.write_bytes(content)

    def cut(path: pathlib.Path) -> None:
        os.truncate(path, rng.randrange(path.stat().st_size))

    def found(make: Callable[[pathlib.Path], None]) -> tuple[bool, str]:
        """Whether damage to a fresh copy is detected by a restore, which uses the older step."""
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(expected, copy)
        folder = copy / f'checkpoints/{newest}'
        make(folder)
        there = sorted(p.relative_to(folder) for p in folder.rglob('*'))
        checkpoints = checkpoint.Checkpoints(copy, keep=9)
        step, why = checkpoints.newest()
        checkpoints.close()
        aside = copy / f'checkpoints/{newest}.damaged'
        kept = aside.exists() and sorted(p.relative_to(aside) for p in aside.rglob('*')) == there
        return step == older and kept, why.get(newest, ['not detected'])[0]

    every = {
        'one flipped bit': flip,
        '64 bytes of zeros': zero,
        'cut short': cut,
        'a missing file': os.remove,
    }
    for what, change in every.items():
        right = [
            found(lambda folder, path=path, change=change: change(folder / path))[0]
            for path in (p.relative_to(expected / f'checkpoints/{newest}') for p in kinds.values())
        ]
        text = f'detected, and step {older} used, in {sum(right)} of {len(right)} kinds of files'
        yield what, text, all(right)

    def empty(folder: pathlib.Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    def foreign(folder: pathlib.Path) -> None:
        (folder / 'variables/notes.txt').write_text('mine')

    others = {
        'an empty step directory': empty,
        'a foreign file in it': foreign,
        **{
            f'{item} gone': lambda folder, item=item: shutil.rmtree(folder / item)
            for item in ('variables', 'training', 'about')
        },
    }
    for what, change in others.items():
        right, why = found(change)
        yield what, f'detected ({why}), step {older} used', right


CAMPAIGNS = {
    'kill': kill,
    'term': term,
    'freeze': freeze,
    'second': second,
    'damage': damage,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('campaigns', nargs='+', choices=CAMPAIGNS)
    parser.add_argument('--config', required=True)
    parser.add_argument('--workdir', required=True, type=pathlib.Path, help='for all the runs')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--devices', type=int, default=2, help='simulated ones of each process')
    parser.add_argument('--times', type=int, default=30, help='how often it happens')
    parser.add_argument('--start', type=float, default=15, help='seconds that the start takes')
    parser.add_argument('--limit', type=float, default=60, help="freeze: the run's step_timeout")
    parser.add_argument('--seed', type=int, default=0, help='of the random moments')
    args, args.rest = parser.parse_known_args()
    rows = []
    for name in args.campaigns:
        for what, result, right in CAMPAIGNS[name](args, random.Random(args.seed)):
            rows.append((what, result, right))
            print(f'{"ok   " if right else "WRONG"} {what}: {result}', flush=True)
    print('\n| event | result | as expected |\n|---|---|---|')
    for what, result, right in rows:
        print(f'| {what} | {result} | {"yes" if right else "**no**"} |')
    sys.exit(not all(right for _, _, right in rows))


if __name__ == '__main__':
    main()
