"""The first cell of every notebook makes the package importable in the kernel that runs it."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from support.process import ROOT

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# What a package is called that has another name where it is imported.
IMPORTED_AS = {'pillow': 'PIL', 'scikit-image': 'skimage', 'scikit-learn': 'sklearn'}


def code(path: Path) -> list[str]:
    """The sources of the code cells of a notebook."""
    cells = json.loads(path.read_text())['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']


def python(cell: str) -> ast.Module:
    """A cell without its commands, which Python cannot parse; `pass` stands for each."""
    joined = cell.replace('\\\n', ' ')
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', joined, flags=re.MULTILINE))


def imported(cell: str) -> set[str]:
    """The packages that a cell imports, without those of Python itself."""
    found = set()
    for node in ast.walk(python(cell)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition('.')[0])
    return found - {*sys.stdlib_module_names}


def packages(requirements: list[str]) -> set[str]:
    names = [re.match(r'[\w-]+', requirement)[0] for requirement in requirements]
    return {IMPORTED_AS.get(name, name.replace('-', '_')) for name in names}


@pytest.fixture(params=sorted((ROOT / 'colabs').glob('*.ipynb')), ids=lambda path: path.stem)
def cells(request) -> list[str]:
    return code(request.param)


def test_the_first_cell_installs_what_the_notebook_imports(cells):
    install, *others = cells
    (requirement,) = re.findall(r"^ +%pip install -q '(.+)'$", install, re.MULTILINE)
    assert requirement == '{CODE}[colab]' and 'colab' in PROJECT['optional-dependencies']
    assert imported(install) == set()
    assert not re.search(r'pip install', '\n'.join(others))
    # An editable install is found by a process that starts afterwards only.
    assert not re.search(r'pip install.*\s(-e|--editable)\b', install)
    (code_,) = re.findall(r"^CODE = '(.+?)'", install, re.MULTILINE)
    assert (ROOT / 'colabs' / code_ / 'pyproject.toml').exists()
    asked = {*re.findall(r"'(\w+)'", re.search(r'for name in \((.*?)\)', install)[1])}
    extra = packages(PROJECT['optional-dependencies']['colab'])
    known = packages(PROJECT['dependencies']) | extra | {'clip_jax'}
    used = set().union(*map(imported, others)) - {'IPython', 'google'}  # the kernel's, and Colab's
    assert used <= known
    assert asked == {'clip_jax'} | (used & extra)


def test_a_package_is_found_right_after_it_was_installed(cells, tmp_path, monkeypatch):
    """The first cell, with a folder in the place of an index of packages."""
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    monkeypatch.setenv('PATH', '/bin')
    name = 'package_that_appears'
    install = re.sub(r'for name in \(.*?\)', f'for name in ({name!r},)', cells[0])
    install = re.sub(r'%pip .*', 'install(CODE)', install)
    installed = []

    def pip(place: str) -> None:
        installed.append(place)
        (tmp_path / f'{name}.py').write_text('')

    for _ in range(2):
        exec(install, {'install': pip})
        __import__(name)
    assert installed == ['..']
    sys.modules.pop(name)


def test_commands_name_configs_that_come_with_the_package(cells):
    named = re.findall(r'--config=(\S+)', '\n'.join(cells))
    assert all((ROOT / 'configs' / f'{name}.py').exists() for name in named), named
