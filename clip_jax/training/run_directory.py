"""The folder of a run: whose run it is, whether it is complete, and its small files."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from clip_jax.data import examples
from clip_jax.runtime import atomic, lock, multihost
from clip_jax.runtime.messages import first_few

# What may differ when a run goes on: it says how and where something is computed or kept, not what.
FREE = (
    'mesh',
    'microbatches',
    'compilation_cache',
    'log_every',
    'eval_every',
    'evals',
    'figures',
    'checkpoint',
    'skip_updates',
    'step_timeout',
    'data.num_threads',
    'data.num_workers',
    'data.max_bad_fraction',
    'data.options.tars.index_dir',
    'model.remat',
    'model.attention',
    'loss.implementation',
    'loss.block_size',
)


def finished(workdir: epath.Path, resolved: dict[str, Any]) -> bool:
    """Whether `workdir` holds a complete run of this config; ValueError if of another."""
    path = workdir / 'config.json'
    if not path.exists():
        inside = workdir.is_dir() and atomic.unexpected_files(workdir, lock.name(), path.name)
        if workdir.is_file() or inside:
            raise ValueError(
                f'{workdir}: not empty and no run directory; expected a new or empty folder'
            )
        return False
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f'{path} is damaged ({error}); in each checkpoint, `about` has what it held as "config"'
        ) from None
    changed = _changes(there, resolved)
    if wrong := [key for key in changed if not _is_free(key)]:
        shown = [f'{k} is {changed[k][0]} there, {changed[k][1]} here' for k in wrong]
        raise ValueError(
            f'{workdir}: holds a run of another config ({first_few(shown, 3, separator="; ")}); '
            'expected the same config, or another --workdir'
        )
    for key, (old, new) in changed.items():
        print(f'{workdir}: goes on with {key} {new}, {old} until now', flush=True)
    return (workdir / 'summary.json').exists()


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f'{free}.') for free in FREE)


def _changes(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys in which two configs differ, with both values, '-' where there is none."""

    def flat(tree: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f'{prefix}{key}.')
            else:
                yield prefix + key, repr(value)

    old, new = dict(flat(there)), dict(flat(here))
    return {
        key: (old.get(key, '-'), new.get(key, '-'))
        for key in {**old, **new}
        if old.get(key, '-') != new.get(key, '-')
    }


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a file whole or not at all, once for all hosts."""
    if multihost.is_primary():
        atomic.write_json(path, content)


def summary_text(workdir: epath.Path) -> str:
    """The last numbers of a complete run and where things lie, for people."""
    summary = json.loads((workdir / 'summary.json').read_text())
    lines = [f'{name:44} {v:.4f}' for name, v in summary.items() if isinstance(v, float)]
    if summary['bad_records']:
        counts = examples.describe_counts(summary['bad_records'])
        lines.append(f'records replaced by others: {counts}; bad_records-*.jsonl names them')
    if skipped := {k: n for k, n in summary['skipped_updates'].items() if n}:
        lines.append(f'updates that were not made: {examples.describe_counts(skipped)}')
    places = ['summary.json', 'card.json', 'metrics.jsonl', 'checkpoints/', *summary['figures']]
    return '\n'.join([*lines, f'in {workdir}: {", ".join(places)}'])
