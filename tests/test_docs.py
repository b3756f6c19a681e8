"""Every code block of the README and the documentation is run by a test, checked against the real
parsers and files, or marked with what it needs.
"""

import argparse
import collections
import importlib.util
import inspect
import itertools
import re
import shlex
import sys
import tomllib
from typing import NamedTuple

import pytest
from support.process import ROOT

from clip_jax import convert, lookup
from clip_jax.cli import config_file, main
from clip_jax.data import sources
from clip_jax.evaluation import dims, predictions
from clip_jax.models import captions

PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'experiments/*/README.md', 'configs/**/*.md')
    for path in ROOT.glob(pattern)
)
RUN_BY_TEST_EXTEND = 'docs/extend.md'
RUN_BY_TEST_PYTHON = 'docs/python.md'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
EXTRAS = PROJECT['project']['optional-dependencies']
# A comment in the line above a block says what a machine needs to run it.
MARKS = {'cluster': 1, 'data': 4, 'minutes': 8, 'device': 2}
_BLOCK = re.compile(
    r'(?:^<!-- needs: (?P<needs>\w+) -->\n)?^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n'
    r'(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced code block of a page."""

    page: str
    language: str
    title: str
    needs: str
    text: str


def blocks(language: str = '') -> list[Block]:
    return [
        Block(
            str(page.relative_to(ROOT)),
            found['language'],
            found['title'] or '',
            found['needs'] or '',
            found['text'],
        )
        for page in PAGES
        for found in _BLOCK.finditer(page.read_text())
        if language in ('', found['language'])
    ]


def lines(block: Block) -> list[str]:
    """The commands of a block, continued lines joined, without comments."""
    joined = block.text.replace('\\\n', ' ').splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith('#')]


def words(line: str) -> list[str]:
    """The words of a command, those of a quoted command in it included."""
    found = shlex.split(line.removesuffix('&'), comments=True)
    return [w for part in found for w in (shlex.split(part) if 'clip-jax ' in part else [part])]


def clip_jax_commands() -> list[tuple[str, list[str]]]:
    """(page, arguments) of each `clip-jax` command."""
    commands = []
    for block in blocks('bash'):
        for line in lines(block):
            parts = words(line)
            if 'clip-jax' in parts and block.page != RUN_BY_TEST_EXTEND:
                commands.append((block.page, parts[parts.index('clip-jax') + 1 :]))
    return commands


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    return main._parser().parse_known_args(arguments)


def test_every_block_has_a_language_that_is_checked():
    assert len(blocks()) > 40
    for block in blocks():
        assert block.language in ('bash', 'python', 'text'), block


def test_marks_are_counted():
    assert collections.Counter(block.needs for block in blocks() if block.needs) == MARKS


def test_commands_parse_and_name_configs_keys_options_and_data_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    commands = [one for one in clip_jax_commands() if one[1] != ['--version']]
    assert len(commands) > 40
    for page, arguments in commands:
        args, rest = parsed(arguments)
        what = f'{page}: clip-jax {" ".join(arguments)}'
        if args.command == 'plan' and args.compare:
            assert not rest, what
        elif args.command in ('train', 'plan'):
            assert config_file.read(args.config, rest).total_steps > 0, what
        elif args.command == 'eval' and args.name == 'suite':
            config_file.read(args.suite, rest, flag='suite')
        elif args.command == 'eval':
            function = lookup.module('evals', args.name).evaluate
            check_options(rest, function, args.data, 'data.', what)
        elif args.command == 'data':
            check_options([r for r in rest if '--beam.' not in r], None, args.spec, '', what)
        elif args.command == 'classify':
            check_options(rest, predictions.write, args.spec, 'data.', what)
        elif args.command == 'caption':
            given = {one.removeprefix('--').partition('=')[0] for one in rest}
            assert given <= {*captions.OPTIONS, 'seed'}, what
        elif args.command == 'convert':
            convert.check_layout(args.layout)
        else:
            assert not rest, what
        for spec in filter(None, (getattr(args, name, None) for name in ('data', 'spec'))):
            assert {*sources.kinds(spec)} <= {*lookup.names('data.sources')}, what


def check_options(rest, function, spec, prefix, what):
    """Checks options of an evaluation, and of data, by the signatures of their functions."""
    for option in rest:
        name = option.removeprefix('--').partition('=')[0]
        if function is None or name.startswith('data.'):
            (kind,) = sources.kinds(spec)
            parameters = inspect.signature(lookup.module('data.sources', kind).source).parameters
            name = name.removeprefix(prefix)
        else:
            parameters = {*inspect.signature(function).parameters, dims.OPTION}
        assert name in parameters, what


def test_other_commands_name_extras_scripts_tests_and_tools_that_exist():
    tools = ' '.join(itertools.chain(*EXTRAS.values()))
    seen = set()
    for block in blocks('bash'):
        if block.page == RUN_BY_TEST_EXTEND:
            continue
        for line in lines(block):
            program, *arguments = itertools.takewhile('&&'.__ne__, words(line))
            seen.add(program)
            if program == 'pip':
                check_pip(arguments)
            elif program == 'pytest':
                check_pytest(arguments)
            elif program == 'python' and arguments[0] == '-m':
                assert arguments[1] in tools, line
            elif program == 'python':
                check_script(arguments)
            elif program in ('ruff', 'mkdocs', 'pyrefly', 'pre-commit'):
                assert program in tools, line
            else:
                assert program == 'clip-jax' or block.needs, f'{block.page}: {line}'
    assert {'pip', 'pytest', 'python', 'clip-jax'} <= seen


def check_pip(arguments: list[str]) -> None:
    assert arguments[:2] == ['install', '-e']
    assert (ROOT / 'pyproject.toml').exists()
    for extra in re.findall(r'[\w-]+', arguments[2].removeprefix('.')):
        assert extra in EXTRAS, arguments


def check_pytest(arguments: list[str]) -> None:
    markers = [m.partition(':')[0] for m in PROJECT['tool']['pytest']['ini_options']['markers']]
    for option, value in itertools.pairwise([*arguments, '']):
        if option == '-m':
            assert value in markers, arguments
        elif option.endswith('.py'):
            assert (ROOT / option).exists(), arguments


def check_script(arguments: list[str]) -> None:
    """A script exists and has the flags that it is called with."""
    script = (ROOT / arguments[0]).read_text()
    for flag in (a.partition('=')[0] for a in arguments[1:] if a.startswith('--')):
        assert f"'{flag}'" in script or flag.startswith('--config.'), (arguments[0], flag)


def test_workflows_install_extras_that_exist():
    for path in (ROOT / '.github/workflows').glob('*.yml'):
        for extras in re.findall(r"pip install -e '\.\[([\w,-]+)\]'", path.read_text()):
            assert {*extras.split(',')} <= {*EXTRAS}, path


def executed(block: Block, run) -> dict:
    """The names that a block defines, with a small run in the place of the quickstart's."""
    names = {}
    exec(block.text.replace('runs/quickstart', str(run)), names)
    return names


def test_python_without_a_file_name_runs(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *code = [block for block in blocks('python') if not block.title]
    assert 'runs/quickstart' in first.text
    executed(first, tiny_run)
    label, _, similarity = capsys.readouterr().out.partition('cosine similarity')
    assert label.split()[0] in ('red', 'blue')
    assert -1 <= float(similarity) <= 1
    for block in code:
        if block.page != RUN_BY_TEST_PYTHON:
            names = executed(block, tiny_run)
            if 'get_config' in names:
                names['get_config']()


def test_python_files_of_other_pages_are_configs(tmp_path):
    files = [b for b in blocks('python') if b.title and b.page != RUN_BY_TEST_EXTEND]
    assert files
    for block in files:
        (tmp_path / block.title).write_text(block.text)
        assert config_file.read(str(tmp_path / block.title)).is_locked


def test_commands_that_need_a_run_alone_are_executed(tiny_run, tmp_path, monkeypatch, capsys):
    """`checkpoint`, `plot` and `convert` of runs/quickstart, with a small run in its place."""
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs/quickstart').symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    commands = {
        tuple(arguments)
        for _, arguments in clip_jax_commands()
        if arguments[0] in ('checkpoint', 'plot', 'convert')
        and any('runs/quickstart' in argument for argument in arguments)
        and not any(argument.startswith('--report') for argument in arguments)
    }
    assert {arguments[0] for arguments in commands} == {'checkpoint', 'plot', 'convert'}
    for arguments in sorted(commands):
        with pytest.raises(SystemExit) as end:
            main.main(arguments)
        assert end.value.code == 0, (arguments, capsys.readouterr().err)


def test_keys_of_configs_in_the_text_exist():
    config = config_file.read('default').to_dict()
    tops = '|'.join(config)
    count = 0
    for page in PAGES:
        text = page.read_text()
        named = re.findall(rf'--config\.((?:{tops})\b[\w.]*)', text)
        named += re.findall(rf'`(?:c\.)?((?:{tops})\.[\w.]+)(?:=[^`]*)?`', text)
        for key in named:
            top, *rest = key.rstrip('.').split('.')
            value = config[top]
            if top in ('evals', 'writers') or rest[-1:] in (['json'], ['py']):
                continue  # names of the user's choice, and files
            for part in rest:
                assert part in value, f'{page.relative_to(ROOT)}: {key}'
                value = value[part]
            count += 1
    assert count > 60


def test_files_that_pages_link_to_exist():
    for page in PAGES:
        for link in re.findall(r'\]\((?!https?:|#)([^)#\s]+)', page.read_text()):
            assert (page.parent / link).exists(), f'{page.relative_to(ROOT)}: {link}'


def test_files_of_the_repository_that_pages_name_exist():
    folders = 'clip_jax|configs|experiments|colabs|tests'
    named = [
        (page, path)
        for page in PAGES
        for path in re.findall(rf'`((?:{folders})/[\w./]+)`', page.read_text())
    ]
    assert len(named) > 20
    for page, path in named:
        assert (ROOT / path).exists(), f'{page.relative_to(ROOT)}: {path}'


def test_modules_of_the_reference_exist():
    names = [
        name
        for page in (ROOT / 'docs/reference').glob('*.md')
        for name in re.findall(r'^::: ([\w.]+)', page.read_text(), re.MULTILINE)
    ]
    assert len(names) > 30
    for name in names:
        assert importlib.util.find_spec(name), name


def test_pages_of_the_navigation_exist():
    added = 'experiments/', 'configs/', 'CONTRIBUTING', 'CHANGELOG'  # by docs/hooks.py
    navigation = (ROOT / 'mkdocs.yml').read_text()
    for page in re.findall(r'^\s+- [^:]+: (\S+\.md)$', navigation, re.MULTILINE):
        folder = ROOT if page.startswith(added) else ROOT / 'docs'
        assert (folder / page).exists(), page


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120
