"""The run directory: which config it belongs to, whether the run is complete, and small files."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from flax import traverse_util

from clip_jax.data import examples
from clip_jax.places import resolve
from clip_jax.runtime import atomic, foreign_json, lock, multihost
from clip_jax.runtime.messages import first_few
from clip_jax.training import profile

# Keys that may change when a run resumes: they say how and where, not what is computed.
FREE = (
    'mesh',
    'microbatches',
    'compilation_cache',
    'log_every',
    'eval_every',
    'evals',
    'figures',
    'writers',
    'checkpoint',
    'skip_updates',
    'step_timeout',
    'profile',
    'compiler_options',
    'data.num_threads',
    'data.num_workers',
    'data.max_bad_fraction',
    'data.options.tars.index_dir',
    'model.remat',
    'model.attention',
    'loss.implementation',
    'loss.block_size',
)
# Keys that may change too if the user says so: a run is extended, or is continued in another way.
ALLOWABLE = ('total_steps', 'batch_size', 'data', 'loss', 'optimizer', 'stages')
DATA = 'data.train'
ADDRESSES = 'addresses.json'


def is_complete(
    workdir: epath.Path, resolved: dict[str, Any], allow_changes: Sequence[str] = ()
) -> bool:
    """Whether a run directory is complete.

    Args:
        workdir: the run directory.
        resolved: the config of the run, as JSON.
        allow_changes: keys, or sub-trees, that may differ from the config that is stored there.

    Raises:
        ValueError: it holds a run of another config, or something else; or a key that may not
            change.
    """
    for key in allow_changes:
        if not is_below(key, ALLOWABLE):
            raise ValueError(
                f'--allow-change: {key} cannot change in a run; expected '
                f'{", ".join(ALLOWABLE)}, or keys below them'
            )
    path = workdir / 'config.json'
    if not path.exists():
        inside = workdir.is_dir() and atomic.unexpected_files(workdir, lock.name(), path.name)
        if workdir.is_file() or inside:
            raise ValueError(
                f'{workdir}: not empty and no run directory; expected a new or empty folder'
            )
        return False
    try:
        saved = read_json(path)
    except ValueError as error:
        raise ValueError(f'{error}; each checkpoint has the config, in `about`') from None
    changed = _changes(saved, resolved)
    free = (*FREE, *allow_changes)
    flat = traverse_util.flatten_dict(resolved, sep='.')
    if any(flat.get(f'lora.{tower}.rank') for tower in ('image', 'text')):
        free = (*free, 'init_from')  # where the base of adapters is, whose fingerprint is known
    summary = workdir / 'summary.json'
    # A run that is extended is complete again when it has a summary of its new last step.
    complete = summary.exists() and read_json(summary).get('step') == resolved.get('total_steps')
    # Data that have moved are known by their records, which are read later.
    later = () if complete or is_below(DATA, free) else (DATA,)
    if wrong := [key for key in changed if not is_below(key, (*free, *later))]:
        shown = [f'{k} is {changed[k][0]} there, {changed[k][1]} now' for k in wrong]
        allow = ''
        if all(is_below(key, ALLOWABLE) for key in wrong):
            allow = f', or --allow-change={",".join(wrong)} to resume with the new value'
        raise ValueError(
            f'{workdir}: holds a run of another config ({first_few(shown, 3, separator="; ")}); '
            f'expected the same config, or another --workdir{allow}'
        )
    for key, (old, new) in changed.items():
        if key in later:
            continue
        print(f'{workdir}: resumes with {key} {new}, which was {old}', flush=True)
    return complete


def is_below(key: str, trees: Sequence[str]) -> bool:
    """Whether a key of the config is one of some keys, or below one of them."""
    return any(key == tree or key.startswith(f'{tree}.') for tree in trees)


def _changes(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys in which two configs differ, with both values, '-' where there is none."""

    old, new = (
        {key: repr(value) for key, value in traverse_util.flatten_dict(x, sep='.').items()}
        for x in (saved, now)
    )
    return {
        key: (old.get(key, '-'), new.get(key, '-'))
        for key in {**old, **new}
        if old.get(key, '-') != new.get(key, '-')
    }


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file of a run directory; ValueError names it if it is damaged."""
    return foreign_json.read(path, object)


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a JSON file atomically, on the primary process only."""
    if multihost.is_primary():
        atomic.write_json(path, content)


def write_addresses(workdir: epath.Path, resolved: Mapping[str, Any]) -> None:
    """Writes which revisions of the checkpoints that a config names the run has read, if any."""
    teachers = resolved['distillation']['teachers'].values()
    named = [resolved['init_from'] or '', *(x.get('path') or '' for x in teachers)]
    found = {name: address for name in named if (address := resolve.pinned(name))}
    path = workdir / ADDRESSES
    if found and multihost.is_primary():
        before = read_json(path) if path.exists() else {}
        atomic.write_json(path, {**found, **before})  # the first that a name stood for


def summary_text(workdir: epath.Path, summary: Mapping[str, Any]) -> str:
    """The scores of a complete run, and where its files are, as text."""
    lines = [f'{name:44} {v:.4f}' for name, v in summary.items() if _is_shown(name, v)]
    if summary['bad_records']:
        counts = examples.describe_counts(summary['bad_records'])
        lines.append(f'records replaced by others: {counts}; bad_records-*.jsonl names them')
    if skipped := {k: n for k, n in summary['skipped_updates'].items() if n}:
        lines.append(f'skipped updates: {examples.describe_counts(skipped)}')
    places = ['summary.json', 'card.json', 'metrics.jsonl', 'checkpoints/', *summary['figures']]
    places += [f'{profile.FOLDER}/'] if summary['profile'] else []
    return '\n'.join([*lines, f'in {workdir}: {", ".join(places)}'])


def _is_shown(name: str, value: float | None) -> bool:
    """Whether a number of the summary is shown: scores, which are named EVALUATION/SCORE, the loss
    and the speed.
    """
    return value is not None and ('/' in name or name in ('loss', 'seconds', 'pairs_per_second'))
