"""A name in a config -> a module in a plug-in folder, or an error that says what there is."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType


def names(folder: str) -> list[str]:
    """Returns the plug-ins of a folder such as 'losses' or 'models.image', sorted by name."""
    package = importlib.import_module(f'clip_jax.{folder}')
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != '_')


def module(folder: str, name: str) -> ModuleType:
    """Imports one plug-in of a folder; ValueError with the nearest name if there is none."""
    check(name, names(folder), what=folder.replace('.', '/'))
    return importlib.import_module(f'clip_jax.{folder}.{name}')


def check(name: str, choices: Iterable[str], *, what: str) -> str:
    """Returns `name` if it is one of `choices`; else a ValueError with the nearest and with all."""
    choices = sorted(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'{what}: there is no {name!r}.{hint} There are: {", ".join(choices)}.')
