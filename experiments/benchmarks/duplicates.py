"""Near-duplicates of many rows: seconds and memory of our search, next to NumPy's over all pairs.

    python experiments/benchmarks/duplicates.py --rows=100000 --repeats=3
    python experiments/benchmarks/duplicates.py --rows=1000000 --share=0.02 --repeats=1

Rows are random unit vectors whose j-th coordinate has a standard deviation of j^-SPECTRUM around a
common mean; 0 is the hardest case for us, all directions alike. Of them 2 % are copies of others
with noise, by cosine 0.9 to 1. Ours reads them from a folder of embeddings and writes its files;
NumPy has them in memory and multiplies blocks of 4,096 rows in float32, each pair of blocks once,
and notes the products above the threshold. Both run in processes of their own and alternate. NumPy
computes a --share of the pairs of blocks, evenly spread; the time of all is that divided by the
share: extrapolated where the share is below 1. Then both must have found the same groups. Memory is
the peak of what the process allocates (RssAnon); pages of mapped files do not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

SHARD = 65_536
BLOCK = 4096


def shards(args: argparse.Namespace):
    """Yields the rows of each shard, float32 [n, D]."""
    deviations = np.arange(1, args.width + 1, dtype=np.float32) ** -args.spectrum
    first = None
    for start in range(0, args.rows, SHARD):
        rng = np.random.default_rng([start, args.width])
        count = min(SHARD, args.rows - start)
        rows = rng.standard_normal((count, args.width), np.float32) * deviations
        rows += args.mean * np.sqrt(np.mean(deviations**2))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        first = rows.copy() if first is None else first
        copies = rng.choice(count, max(1, count // 50), replace=False)
        noise = rng.standard_normal((len(copies), args.width), np.float32)
        noise *= rng.uniform(0, 0.5, (len(copies), 1)) / np.linalg.norm(noise, axis=1)[:, None]
        rows[copies] = first[rng.integers(len(first), size=len(copies))] + noise
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(args: argparse.Namespace, folder: Path) -> None:
    """Writes the rows as a folder of embeddings, as `clip-jax embed` does."""
    from clip_jax.data import embedding_store
    from clip_jax.runtime import atomic

    counts = []
    for shard, rows in enumerate(shards(args)):
        span = range(shard * SHARD, shard * SHARD + len(rows))
        records = [{'record': i, 'where': str(i), 'image_hash': 0} for i in span]
        none = np.zeros((0, args.width), np.float32)
        place = epath.Path(folder), shard
        embedding_store.write_shard(
            *place, images=rows, texts=none, records=records, bad=[], span=span
        )
        counts.append([len(rows), 0])
    description = embedding_store.Description(
        complete=True,
        model='random',
        fingerprint='random',
        data='folder:none',
        data_options={},
        source_records=args.rows,
        label_names=[],
        features='embedding',
        dim=0,
        save_dtype='float32',
        compute_dtype='float32',
        captions='none',
        shard_size=SHARD,
        batch_size=1,
        image_options={},
        card={},
        scale=1.0,
        images=args.rows,
        texts=0,
        shape=[args.width],
        bad={},
        shards=counts,
    )
    path = epath.Path(folder) / embedding_store.DESCRIPTION
    atomic.write_json(path, description.to_json())


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Searches with our code, from the stored embeddings to the groups."""
    from clip_jax.data.embedding_store import Embeddings
    from clip_jax.embeddings import _rows, duplicates

    said: dict[str, Any] = {}
    options = duplicates.Options(args.threshold)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        start = time.perf_counter()
        rows = _rows.Rows(Embeddings(str(folder)))
        job = duplicates.Job(rows, [], epath.Path(work) / 'work', options)
        found = duplicates.find(job, said.update)
        assert found is not None  # there is one process
        seconds = time.perf_counter() - start
    np.save(folder.parent / 'ours.npy', found.first)
    return {'seconds': seconds, 'exact': found.compared, 'sketch': said['sketch']}


def in_numpy(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Searches a share of all pairs of blocks with NumPy."""
    rows = np.concatenate([np.load(path) for path in sorted(folder.glob('images-*.npy'))])
    blocks = [slice(k, k + BLOCK) for k in range(0, len(rows), BLOCK)]
    pairs = [(i, j) for i in range(len(blocks)) for j in range(i, len(blocks))]
    wanted = np.unique(np.linspace(0, len(pairs) - 1, max(1, round(args.share * len(pairs)))))
    found = []
    start = time.perf_counter()
    for k in wanted.astype(int):
        i, j = pairs[k]
        near = np.argwhere(rows[blocks[i]] @ rows[blocks[j]].T >= args.threshold)
        found.append(near + np.array([blocks[i].start, blocks[j].start]))
    seconds = time.perf_counter() - start
    near = np.concatenate(found)
    np.save(folder.parent / 'numpy.npy', near[near[:, 0] < near[:, 1]])
    share = len(wanted) / len(pairs)
    flops = 2 * args.width * BLOCK**2 * len(wanted)
    return {'seconds': seconds / share, 'share': share, 'gflops': flops / seconds / 1e9}


def allocated() -> int:
    """Bytes that this process has allocated and uses."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(status.partition('RssAnon:')[2].split()[0])


def with_memory(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Runs and adds the peak of the memory, in GiB, looked at ten times a second."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            peak = max(peak, allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = run(*arguments)
    ended.set()
    watcher.join()
    return {**found, 'gib': peak / 2**30}


def same_groups(folder: Path, share: float) -> bool:
    """Whether both found the same groups; of a share of the pairs, whether ours has them."""
    from clip_jax.embeddings import _groups

    first, near = np.load(folder / 'ours.npy'), np.load(folder / 'numpy.npy')
    joined = _groups.firsts(len(first), [near])
    return np.array_equal(first, joined if share == 1 else first[joined])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=100_000)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--threshold', type=float, default=0.95)
    parser.add_argument('--spectrum', type=float, default=0.5)
    parser.add_argument('--mean', type=float, default=0.5)
    parser.add_argument('--share', type=float, default=1.0, help='of the pairs of blocks, of NumPy')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--folder', default='', help='where the rows go (default: a temporary one)')
    parser.add_argument('--only', choices=('ours', 'numpy'), help='one search in this process')
    args = parser.parse_args()
    if args.only:
        run = ours if args.only == 'ours' else in_numpy
        print(json.dumps(with_memory(run, args, Path(args.folder) / 'rows')))
        return
    with tempfile.TemporaryDirectory(dir=args.folder or None) as temporary:
        folder = Path(temporary)
        write(args, folder / 'rows')
        results: dict[str, list[dict[str, Any]]] = {'ours': [], 'numpy': []}
        for _ in range(args.repeats):
            for name, found in results.items():
                command = [sys.executable, __file__, *sys.argv[1:], f'--only={name}']
                done = subprocess.run(
                    [*command, f'--folder={folder}'], stdout=subprocess.PIPE, text=True, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[-1], flush=True)
        same = same_groups(folder, results['numpy'][0]['share'])
        left_out = args.rows - len(np.unique(np.load(folder / 'ours.npy')))
    print(f'\n{args.rows:,} x {args.width}, cosine {args.threshold}, {os.cpu_count()} CPUs')
    print('\n| search | seconds | peak GiB |\n|---|---|---|')
    for name, found in results.items():
        seconds, gib = ([one[key] for one in found] for key in ('seconds', 'gib'))
        spread = f'{statistics.median(seconds):,.0f} ({min(seconds):,.0f} to {max(seconds):,.0f})'
        print(f'| {name} | {spread} | {max(gib):.2f} |')
    ratios = [b['seconds'] / a['seconds'] for a, b in zip(*results.values(), strict=True)]
    share = results['numpy'][0]['share']
    print(f'\nNumPy computed {share:.1%} of the pairs of blocks; it takes {min(ratios):.1f} to')
    print(f'{max(ratios):.1f} times as long. Duplicates: {left_out:,}; the same groups: {same}')


if __name__ == '__main__':
    main()
