"""Mutates inputs, gives them to workers, and says which went wrong.

A file is number `i` of a campaign with a seed: the same two numbers give the same file again:
`python -m fuzz.campaign --seed=S --only=I` from the folder `tests`.
"""

import argparse
import json
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.process import ROOT, environment

from fuzz.mutations import RENEWED, TRAP, mutate
from fuzz.seeds import SEEDS, Seed, copy, make_all
from fuzz.targets import BAD

SECONDS = 10.0  # of processor time for an input
HANGS = 60.0  # seconds until a worker is killed
MEMORY = 200 << 20  # bytes, beside twice the size of the input
# Formats in which nothing can tell a changed value from the right one.
NO_CHECKSUM = {
    *('.json', '.jsonl', '.csv', '.txt', '.safetensors', '.jpg', '.gif', '.bmp', '.tiff', '.webp'),
    *('.avif', '.model', '.tar', '.parquet', '.pt-legacy', '.npy'),
}


# Their readers are given the content.
UNNAMED = {'images', 'tokenizer_json', 'sentencepiece', 'tokenizer_card'}


class Case(NamedTuple):
    """A mutated input."""

    number: int
    name: str
    file: str
    mutation: str
    size: int
    may_differ: bool

    def __str__(self) -> str:
        return f'{self.number}: {self.mutation} of {self.name}/{self.file} ({self.size} bytes)'


def start(seed: int, number: int) -> tuple[str, np.random.Generator]:
    """Returns what input `number` of a campaign is made of, and its random numbers."""
    rng = np.random.default_rng([seed, number])
    weights = np.array([own.weight for own in SEEDS.values()])
    return list(SEEDS)[rng.choice(len(SEEDS), p=weights / weights.sum())], rng


def make_case(seeds: Path, to: Path, seed: int, number: int) -> Case:
    """Writes input `number` of a campaign to a folder."""
    name, rng = start(seed, number)
    files = sorted(p.relative_to(seeds / name) for p in (seeds / name).rglob('*') if p.is_file())
    file = files[rng.integers(len(files))]
    structure = SEEDS[name].structures.get(file.suffix, 'bytes')
    mutation, data = mutate((seeds / name / file).read_bytes(), structure, rng)
    if SEEDS[name].target == 'image':  # a picture is enough
        to.mkdir()
    else:
        copy(seeds / name, to)
        (to / file).unlink()
    (to / file).write_bytes(data)
    kind = '.pt-legacy' if structure == 'legacy' else file.suffix
    # Orbax has no checksums of the values.
    free = mutation in RENEWED or kind in NO_CHECKSUM or name == 'orbax'
    return Case(number, name, str(file), mutation.__name__, len(data), free)


class Worker:
    """A process that opens inputs; it is started anew when it has died."""

    def __init__(self, errors: Path):
        self._errors, self._process = errors, None

    def open(self, folder: Path, target: str) -> dict[str, Any]:
        """Returns what came of an input."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'fuzz.worker'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors.open('ab'),
                env={**environment(), 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'},
            )
        process = self._process
        try:
            process.stdin.write(json.dumps([str(folder), target]).encode() + b'\n')
            process.stdin.flush()
            if not select.select([process.stdout], [], [], HANGS)[0]:
                self.close()
                return {'outcome': 'hang', 'detail': f'no answer in {HANGS:g} s'}
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b''
        if line:
            return json.loads(line)
        self._process = None
        return {'outcome': 'death', 'detail': f'exit status {process.wait()}'}

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def problem(case: Case, answer: dict[str, Any], right: list[str], folder: Path) -> str:
    """Says what is wrong with what came of an input, '' if nothing is."""
    outcome, detail = answer['outcome'], answer['detail']
    if (folder / TRAP).exists():
        return 'code of the file was run'
    if outcome not in ('refused', 'accepted'):
        return f'{outcome}: {detail}'
    if outcome == 'refused' and ('\n' in detail or len(detail) > 2_000):
        return f'not one line: {detail[:500]!r}'
    named = str(folder) in detail or 'tfds:pictures/train' in detail  # or the SPEC
    if outcome == 'refused' and not named and case.name not in UNNAMED:
        return f'does not name the file: {detail}'
    if outcome == 'accepted' and not (case.may_differ or answer['warned']):
        good = [item for item in detail if not item.startswith(BAD)]
        if not {*good} <= {*right} or (case.name != 'images' and len(detail) < len(right)):
            return f'accepted, and what was read differs from the original: {detail}, {right}'
    if answer['seconds'] > SECONDS:
        return f'{answer["seconds"]:.1f} s'
    if answer['memory'] > 2 * case.size + MEMORY:
        return f'{answer["memory"] / 2**20:.0f} MiB for {case.size} bytes'
    return ''


class Campaign:
    """Inputs of a seed, opened one after the other."""

    def __init__(self, place: Path, seed: int):
        self._place, self._seed = place, seed
        self._seeds, self._worker = place / 'seeds', Worker(place / 'stderr')
        self._right: dict[str, list[str]] = {}
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, numbers: Iterable[int]) -> None:
        """Opens inputs and notes problems; their folders stay."""
        if not self._seeds.exists():
            self._seeds.mkdir(parents=True)
            make_all(self._seeds)
        try:
            for name, seed in SEEDS.items():
                self._right[name] = self._digests(name, seed)
            for number in numbers:
                self._one(number)
        finally:
            self._worker.close()

    def _digests(self, name: str, seed: Seed) -> list[str]:
        answer = self._worker.open(self._seeds / name, seed.target)
        assert answer['outcome'] == 'accepted', (name, answer)
        return answer['detail']

    def _one(self, number: int) -> None:
        folder = self._place / f'{number}'
        case = make_case(self._seeds, folder, self._seed, number)
        answer = self._worker.open(folder, SEEDS[case.name].target)
        self.outcomes[answer['outcome']] += 1
        right = self._right[case.name]
        wrong = problem(case, answer, right, folder)
        if wrong:
            self.problems.append(f'{case}: {wrong}')
        else:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--files', type=int, default=1_000)
    parser.add_argument('--start', type=int, default=0)
    parser.add_argument('--only', type=int)
    parser.add_argument('--name', choices=SEEDS, help='only inputs that are made of this one')
    args = parser.parse_args()
    end = args.start + args.files
    numbers = range(args.start, end) if args.only is None else range(args.only, args.only + 1)
    campaign = Campaign(Path(tempfile.mkdtemp(prefix='fuzz-')), args.seed)
    names = [args.name] if args.name else SEEDS
    campaign.run(i for i in numbers if start(args.seed, i)[0] in names)
    print(*campaign.problems, sep='\n')
    print(dict(campaign.outcomes), f'{len(campaign.problems)} problems; seed {args.seed}')
    sys.exit(bool(campaign.problems))


if __name__ == '__main__':
    main()
