"""Help that is made from plug-ins: what there is, and the options of one of them.

Options come from the signature of the plug-in's function, their texts from the `Args:` section of
its docstring.
"""

import argparse
import ast
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import clip_jax
from clip_jax import lookup

WIDTH, COLUMN = 100, 24


class Help(argparse.Action):
    """`--help` with a text that depends on the arguments before it.

    `details(args)` returns that text.
    """

    def __init__(self, *args: Any, details: Callable[[argparse.Namespace], str], **options: Any):
        super().__init__(*args, nargs=0, **options)
        self._details = details

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        try:
            details = self._details(namespace)
        except ValueError as error:
            parser.error(str(error))
        parser.print_help()
        print(f'\n{details}')
        parser.exit()


def plugins(folder: str) -> str:
    """Returns the plug-ins of a folder as text: names and what their files say first. Imports none
    of them.
    """
    place = pathlib.Path(clip_jax.__file__).parent.joinpath(*folder.split('.'))
    return '\n'.join(
        _entry(name, _first_sentence(ast.get_docstring(ast.parse(file.read_text())) or ''))
        for name in lookup.names(folder)
        for file in [place / f'{name}.py']
    )


def options(function: Callable, *, own: int, prefix: str = '--') -> str:
    """Returns the options of a plug-in's function as text.

    Args:
        function: the function.
        own: the number of its leading parameters that do not come from the user.
        prefix: stands before each name.
    """
    texts = _arguments(inspect.getdoc(function) or '')
    entries = []
    for parameter in [*inspect.signature(function).parameters.values()][own:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        text = f'{texts.get(parameter.name, "")} ({_default(parameter)})'
        entries.append(_entry(f'{prefix}{parameter.name}=VALUE', text.strip()))
    return '\n'.join(entries) or '  none'


def source_options(kinds: list[str], prefix: str) -> str:
    """Returns the options of kinds of data sources as text."""
    return '\n'.join(
        f'options of the source {kind}:\n'
        + options(lookup.module('data.sources', kind).source, own=1, prefix=prefix)
        for kind in kinds
    )


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return 'required'
    shown = {None: 'not set', '': 'not set'}
    default = parameter.default
    hashable = default is None or isinstance(default, str)
    return f'default: {shown.get(default, default) if hashable else repr(default)}'


def _arguments(doc: str) -> Mapping[str, str]:
    """Returns the entries of the `Args:` section of a docstring."""
    found = re.search(r'^Args:\n((?:[ ]+.*\n?|\n)+)', doc, re.MULTILINE)
    entries: dict[str, list[str]] = {}
    name = ''
    lines = textwrap.dedent(found[1]).splitlines() if found else []
    for line in lines:
        start = re.match(r'\*{0,2}(\w+)(?: \([^)]*\))?: *(.*)', line)
        if start:
            name = start[1]
            entries[name] = [start[2]]
        elif name:
            entries[name].append(line)
    return {name: ' '.join(' '.join(lines).split()) for name, lines in entries.items()}


def _first_sentence(doc: str) -> str:
    return ' '.join(doc.split('\n\n')[0].split())


def _entry(head: str, text: str) -> str:
    """A name and its text, laid out as argparse does."""
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False) or ['']
    head = f'  {head}'
    if len(head) > COLUMN - 2:
        lines = ['', *lines]
    first, *others = lines
    return '\n'.join([f'{head:{COLUMN}}{first}'.rstrip(), *(f'{"":{COLUMN}}{x}' for x in others)])
