"""Config files: Python files with `get_config(ARG)` that returns a ConfigDict.

Those that come with clip_jax are named without a path: `quickstart`, or `clip27` of the suites.
"""

import functools
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clip_jax import lookup
from clip_jax.cli import _flags
from clip_jax.lookup import configs_folder

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def read(page: str, overrides: Sequence[str] = (), *, flag: str = 'config') -> 'ConfigDict':
    """Reads a config and applies overrides.

    The file is a Python program, and is run. Its folder stays on `sys.path`, so that plug-ins
    beside it can be imported; so does the folder of the configs that come with clip_jax, so that a
    file anywhere can `import default`.

    Args:
        page: NAME[:ARG] of a config that comes with clip_jax, or FILE[:ARG]; `get_config` gets ARG.
        overrides: any number of `--config.key=value`.
        flag: 'config', or 'suite' for a suite of evaluations.

    Returns:
        A locked ConfigDict.

    Raises:
        ValueError: there is no such file, it cannot be run, or an override names no key.
    """
    from absl import flags
    from ml_collections import config_flags

    name, colon, argument = page.partition(':')
    file = _find(name, flag)
    own = [str(file.parent.absolute()), str(configs_folder())]
    sys.path[:] = [*own[:1], *(path for path in sys.path if path not in own), *own[1:]]

    def parse(overrides: Sequence[str]) -> 'ConfigDict':
        values = flags.FlagValues()
        program = ['clip-jax', f'--{flag}={file}{colon}{argument}', *overrides]
        config_flags.DEFINE_config_file(flag, flag_values=values, sys_argv=program)
        values(program)
        value = values[flag].value
        if value is None:
            raise ValueError(
                f'--{flag}: {file} gives no config; expected get_config() to return one'
            )
        return value

    try:
        config = parse(())
    except Exception as error:  # the file is a program: anything can go wrong in it
        reason = f'{type(error).__name__}: {_flags.last_line(error)}'
        raise ValueError(f'--{flag}: {file}: {reason}') from error
    for override in overrides:
        _check_key(override.partition('=')[0], config)
    try:
        return parse(overrides)
    except (flags.Error, LookupError, TypeError) as error:
        reason = _wrong_value(error, config) or _flags.last_line(error)
        raise ValueError(f'--{flag}: {reason}') from error


def _wrong_value(error: Exception, config: Any) -> str:
    """Says what a key of numbers expects, '' if the error is about something else."""
    found = re.match(r'flag --([\w.]+)=(.*?): .*(invalid literal|could not convert)', str(error))
    if not found:
        return ''
    _, *keys = found[1].split('.')
    value = functools.reduce(lambda tree, key: tree[key], keys, config)
    kind = 'an integer' if isinstance(value, int) else 'a number'
    return f'--{found[1]} is {found[2]!r}; expected {kind}, such as {value}'


def _find(name: str, flag: str) -> pathlib.Path:
    """Returns the file that a name or a path stands for."""
    file = pathlib.Path(name)
    if file.is_file():
        return file
    shipped = configs_folder() / 'suites' if flag == 'suite' else configs_folder()
    if name == file.stem:  # no folder, no ending
        found = shipped / f'{name}.py'
        if found.is_file():
            return found
        try:
            lookup.check(name, _pages(shipped), what=f'--{flag}')
        except ValueError as error:
            raise ValueError(f'{error} Name your own file by its path, with .py') from None
    raise ValueError(
        f'--{flag}: there is no file {file}; found beside it: '
        f'{", ".join(f"{page}.py" for page in _pages(file.parent)) or "nothing"}. '
        f'Configs that come with clip_jax are named without a path: {", ".join(_pages(shipped))}'
    )


def _pages(folder: pathlib.Path) -> list[str]:
    return sorted(path.stem for path in folder.glob('*.py')) if folder.is_dir() else []


def _check_key(flag: str, config: Any) -> None:
    """ValueError if a flag such as --config.model.image.width names no key of the config."""
    parent, *keys = flag.split('.')
    for key in keys:
        if '[' in key or not hasattr(config, 'keys'):
            return  # an item of a list
        config = config[lookup.check(key, config.keys(), what=parent)]
        parent += f'.{key}'
