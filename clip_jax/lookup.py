"""Plug-ins by name: a file in one of our folders, or a module of your own by its import path; and
where the configs are that come with clip_jax.
"""

import difflib
import importlib
import importlib.util
import pathlib
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

_SHOWN = 100  # characters of a name and choices in a message; files may have any number
_Name = TypeVar('_Name')  # a config or a card may hold anything


def names(folder: str) -> list[str]:
    """Returns the built-in plug-ins of a folder such as 'losses' or 'models.image', sorted."""
    package = f'clip_jax.{folder}'
    if package in sys.modules:
        places = sys.modules[package].__path__
    else:  # not imported for its names alone
        # pyrefly: ignore[missing-attribute]  # a folder of ours has a spec
        places = importlib.util.find_spec(package).submodule_search_locations
    return sorted(m.name for m in pkgutil.iter_modules(places) if m.name[0] != '_')


def module(folder: str, name: str, *required: str) -> ModuleType:
    """Imports a plug-in.

    Args:
        folder: the plug-in folder in clip_jax, such as 'losses' or 'models.image'.
        name: a file of that folder ('softmax'), or the import path of any other module, which has
            a dot ('my_package.my_loss').
        *required: attributes that the caller needs from it.

    Returns:
        The module.

    Raises:
        ValueError: if there is no such plug-in (with the nearest name), if it cannot be imported,
            or if it lacks a required attribute.
    """
    if '.' in str(name):
        found = _import(folder, name)
    else:
        if name not in (choices := names(folder)):
            raise ValueError(
                f'{_unknown(name, choices, what=_path(folder))} '
                'Name a module of your own by its import path, such as my_package.my_module.'
            )
        found = importlib.import_module(f'clip_jax.{folder}.{name}')
    return interface(folder, found, *required)


def _import(folder: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except Exception as error:  # whatever a module raises while it is imported
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(
            f'{_path(folder)}: cannot import {path!r} ({reason}). It must be importable: '
            'on PYTHONPATH, or beside the config file'
        ) from error


def interface(folder: str, plugin: ModuleType, *required: str) -> ModuleType:
    """Returns a plug-in that has all `required` attributes; ValueError if it lacks one."""
    missing = [name for name in required if not hasattr(plugin, name)]
    if missing:
        raise ValueError(
            f'{_path(folder)}: {plugin.__name__} lacks {", ".join(missing)}; '
            f'see clip_jax/{_path(folder)}/__init__.py for what a plug-in must define'
        )
    return plugin


def label(folder: str, name: str) -> str:
    """Returns what messages call a plug-in: 'losses/softmax', or its import path."""
    return name if '.' in str(name) else f'{_path(folder)}/{name}'


def check(name: _Name, choices: Iterable[str], *, what: str) -> _Name:
    """Returns `name` if it is one of `choices`; else a ValueError with the nearest and with all."""
    choices = sorted(choices)
    if name in choices:
        return name
    raise ValueError(_unknown(name, choices, what=what))


def configs_folder() -> pathlib.Path:
    """Returns the folder of the configs that come with clip_jax: `clip_jax/configs` where a wheel
    is installed, `configs` in a checkout.
    """
    package = pathlib.Path(__file__).absolute().parent
    installed = package / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def _unknown(name: object, choices: list[str], *, what: str) -> str:
    near = difflib.get_close_matches(str(name)[:_SHOWN], choices, n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    more = ['…'] if len(choices) > _SHOWN else []
    listed = ', '.join([*map(_readable, choices[:_SHOWN]), *more])
    return f'{what}: there is no {repr(name)[:_SHOWN]}.{hint} There are: {listed}.'


def _readable(choice: object) -> str:
    text = str(choice)[:_SHOWN]
    return text if text.isprintable() else repr(text)


def _path(folder: str) -> str:
    return folder.replace('.', '/')
