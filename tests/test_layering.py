"""Imports fall downward, plug-ins stand alone, and neither TensorFlow nor PyTorch is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process import environment

import clip_jax

PACKAGE = Path(clip_jax.__file__).parent
# From the top to the bottom; a folder stands for all that is in it.
LAYERS = {
    'command line': ('cli',),
    'programs': ('training', 'embeddings', 'evaluation', 'reports'),
    'scoring': ('evals',),
    'assembly': ('pretrained', 'checkpoint', 'build'),
    'bricks': ('models', 'losses', 'step', 'data', 'tokenizers', 'convert', 'prompts'),
    'ground': ('metrics', 'sharding', 'lookup'),
    'bedrock': ('runtime',),
}
PLUGINS = (
    'models.image',
    'models.text',
    'losses',
    'data.sources',
    'data.datasets',
    'tokenizers',
    'evals',
    'convert',
    'metrics',
)


def parse() -> dict[str, ast.Module]:
    """All modules of the package by name, without the leading `clip_jax.`; '' is the package."""
    trees = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        name = '' if name == '__init__' else name.removesuffix('.__init__')
        trees[name] = ast.parse(path.read_text())
    return trees


TREES = parse()


def imports(tree: ast.Module) -> Iterator[str]:
    """Every name that a module imports, wherever it does so; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports are absolute'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports; the package itself does not count."""
    found = set()
    for imported in imports(TREES[name]):
        package, _, rest = imported.partition('.')
        if package == 'clip_jax':
            # What is no module is a name in one: clip_jax.lookup.names.
            found.add(rest if rest in TREES else rest.rpartition('.')[0])
    return found - {''}


def top_imports(name: str) -> set[str]:
    return {imported.partition('.')[0] for imported in imports(TREES[name])}


def layer(name: str) -> int:
    """The number of the layer that a module belongs to; 0 is the highest."""
    top = name.partition('.')[0]
    return [top in members for members in LAYERS.values()].index(True)


def plugin(name: str) -> bool:
    folder, _, last = name.rpartition('.')
    return folder in PLUGINS and not last.startswith('_')


MODULES = [name for name in TREES if name]


def test_every_file_belongs_to_one_layer():
    assert len(MODULES) > 20
    for name in MODULES:
        top = name.partition('.')[0]
        assert sum(top in members for members in LAYERS.values()) == 1, name


@pytest.mark.parametrize('name', MODULES)
def test_imports_fall_downward(name):
    upward = {other for other in own_imports(name) if layer(other) < layer(name)}
    assert not upward


@pytest.mark.parametrize('name', [name for name in MODULES if layer(name) >= 5])
def test_the_ground_stands_on_the_runtime_alone(name):
    tops = {other.partition('.')[0] for other in own_imports(name)}
    assert tops <= {name.partition('.')[0], *LAYERS['bedrock']}


@pytest.mark.parametrize('name', [name for name in MODULES if name.startswith('evals.')])
def test_evaluations_never_see_a_model(name):
    others = {other for other in own_imports(name) if not other.startswith('evals._')}
    allowed = {'evals', 'data.sources'}  # their own package, and the type of their data
    tops = {other.partition('.')[0] for other in others - allowed}
    assert tops <= {'prompts', *LAYERS['ground'], *LAYERS['bedrock']}


@pytest.mark.parametrize('name', MODULES)
def test_plug_ins_are_found_by_name_and_imported_by_nobody(name):
    assert not {other for other in own_imports(name) if plugin(other)}


@pytest.mark.parametrize('name', MODULES)
def test_private_files_are_for_their_own_folder(name):
    for other in own_imports(name):
        folder, _, last = other.rpartition('.')
        if last.startswith('_'):
            assert folder in (name, name.rpartition('.')[0])  # the package itself, or a file in it


def test_there_are_no_cycles():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, [*path, name]
        if name not in done:
            path.append(name)
            for other in own_imports(name):
                visit(other)
            done.add(path.pop())

    for name in MODULES:
        visit(name)
    assert done == set(MODULES)


@pytest.mark.parametrize('name', MODULES)
def test_only_programs_know_config_objects(name):
    assert 'ml_collections' not in top_imports(name) or name.partition('.')[0] in (
        'cli',
        'training',
    )


@pytest.mark.parametrize('name', ['', *MODULES])
def test_no_file_names_tensorflow_or_torch(name):
    assert not {'tensorflow', 'torch', 'tensorflow_text', 'keras'} & top_imports(name)


def run(program: str, **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        env={**environment(), **changes},
        timeout=200,
    )


def test_importing_the_package_imports_nothing_heavy_until_it_is_used():
    done = run("""
import sys
import clip_jax
heavy = {'jax', 'numpy', 'flax', 'orbax', 'tensorflow', 'torch', 'tensorflow_datasets'}
assert clip_jax.__version__ and {'load', 'Clip'} <= set(clip_jax.__all__)
print(heavy & {*sys.modules})
clip_jax.load
print('jax' in sys.modules, {'tensorflow', 'torch', 'tensorflow_datasets'} & {*sys.modules})
try:
    clip_jax.lod
except AttributeError as error:
    print('load' in str(error))
""")
    assert done.stdout.split('\n') == ['set()', 'True set()', 'True', ''], done.stderr


def test_a_run_tries_to_import_neither_tensorflow_nor_torch(tiny_config, tmp_path):
    # Installed, but broken: who only tries is seen too.
    log = tmp_path / 'log.txt'
    for package in ('tensorflow', 'torch'):
        (tmp_path / 'site' / package).mkdir(parents=True)
        (tmp_path / 'site' / package / '__init__.py').write_text(
            'import traceback\n'
            f'open({str(log)!r}, "a").write("".join(traceback.format_stack()))\n'
            'raise ImportError("not for you")\n'
        )
    small = 'total_steps=2', 'optimizer.warmup_steps=1', 'model.image.depth=1', 'model.text.depth=1'
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}'
    arguments = ['train', *flags, *(f'--config.{change}' for change in small)]
    done = run(
        f"""
import importlib.util, sys
from clip_jax.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    print(end.code, {{'tensorflow', 'torch'}} & {{*sys.modules}})
print(importlib.util.find_spec('torch').origin)
""",
        PYTHONPATH=f'{tmp_path / "site"}:{environment()["PYTHONPATH"]}',
    )
    *_, last, origin = done.stdout.splitlines()
    assert last == '0 set()', done.stderr
    assert origin == str(tmp_path / 'site/torch/__init__.py')
    assert not log.exists(), log.read_text()
