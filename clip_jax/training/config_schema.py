"""The keys of a training config: every key is read by something, and none is missing."""

import functools
import runpy
from typing import Any

from ml_collections import ConfigDict

from clip_jax import lookup
from clip_jax.data import sources

# Sub-trees with options of plug-ins, or with names that the user chooses: whatever they are given
# to checks their keys.
OPEN = ('writers', 'evals', 'loss', 'optimizer', 'tokenizer', 'preprocess')
OPEN += (
    'distillation.teachers',
    'model.image',
    'model.text',
    'model.decoder',
    'data.options',
    'data.caption_fields',
)


@functools.cache
def defaults() -> ConfigDict:
    """Returns the config of configs/default.py, which has every key."""
    return runpy.run_path(str(lookup.configs_folder() / 'default.py'))['get_config']()


def check(config: ConfigDict) -> None:
    """Checks the keys of a training config.

    Raises:
        ValueError: a key that nothing reads, with the nearest one, or a key that is missing.
    """
    _compare(config, defaults(), '')
    evals = [entry.get('data') for entry in config.evals.values() if hasattr(entry, 'keys')]
    specs = [config.data.train, *filter(None, evals)]
    used = {sources.option_key(kind) for spec in specs for kind in sources.kinds(spec)}
    known = defaults().data.options
    for kind, options in config.data.options.items():
        lookup.check(kind, {*known, *used}, what='config.data.options')
        if kind in known:
            _compare(options, known[kind], f'data.options.{kind}')


def _compare(found: Any, known: ConfigDict, path: str) -> None:
    """ValueError if the keys of a sub-tree are not those of the defaults."""
    what = '.'.join(filter(None, ('config', path)))
    if not hasattr(found, 'keys'):
        raise ValueError(f'{what} is {found!r}; expected a ConfigDict with {", ".join(known)}')
    for key in found:
        lookup.check(key, known, what=what)
    missing = [key for key in known if key not in found]
    if missing:
        raise ValueError(
            f'{what} lacks {", ".join(missing)}; start from the defaults: '
            'config = default.get_config().unlock()'
        )
    for key, value in known.items():
        below = f'{path}.{key}'.lstrip('.')
        if isinstance(value, ConfigDict) and below not in OPEN:
            _compare(found[key], value, below)
