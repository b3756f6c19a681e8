"""Imports fall downward and are not deep, files are short, plug-ins stand alone, and neither
TensorFlow nor PyTorch is imported.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.process import environment

import clip_jax

PACKAGE = Path(clip_jax.__file__).parent
# From the top to the bottom; a folder stands for all that is in it.
LAYERS = {
    'command line': ('cli',),
    'programs': ('training', 'planning', 'embeddings', 'evaluation', 'reports'),
    'scoring': ('evals',),
    'assembly': ('pretrained', 'checkpoint', 'build'),
    'bricks': (
        'models',
        'losses',
        'distillation',
        'step',
        'data',
        'tokenizers',
        'convert',
        'places',
        'prompts',
    ),
    'ground': ('metrics', 'sharding', 'lookup'),
    'bedrock': ('runtime',),
}
PLUGINS = (
    'models.image',
    'models.text',
    'losses',
    'distillation',
    'data.sources',
    'data.datasets',
    'tokenizers',
    'evals',
    'convert',
    'metrics',
    'step.optimizers',
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
MOST_ENTRIES = 25  # files and folders directly in clip_jax/
MOST_DEPTH = 10  # modules in a chain of imports
MOST_LINES = {ast.Module: 500, ast.ClassDef: 200, ast.FunctionDef: 100, ast.AsyncFunctionDef: 100}


def chains() -> dict[str, tuple[str, ...]]:
    """The longest chain of imports that begins at each module; a cycle fails here."""
    found: dict[str, tuple[str, ...]] = {}
    path: list[str] = []

    def visit(name: str) -> tuple[str, ...]:
        assert name not in path, f'cycle: {" > ".join([*path, name])}'
        if name not in found:
            path.append(name)
            below = [visit(other) for other in sorted(own_imports(name))]
            found[name] = (path.pop(), *max(below, key=len, default=()))
        return found[name]

    for name in MODULES:
        visit(name)
    return found


def test_the_package_has_few_entries():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != '__pycache__']
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_every_file_belongs_to_one_layer():
    assert len(MODULES) > 20
    members = [member for layer in LAYERS.values() for member in layer]
    wrong = [name for name in MODULES if members.count(name.partition('.')[0]) != 1]
    assert not wrong


def test_imports_fall_downward():
    upward = [
        (name, other)
        for name in MODULES
        for other in own_imports(name)
        if layer(other) < layer(name)
    ]
    assert not upward


def test_there_are_no_cycles():
    assert chains().keys() == set(MODULES)


def test_imports_are_not_deep():
    """Depth is the number of modules in the longest chain of imports.

    Every import statement between modules of the package counts, in functions too. What is imported
    by name (plug-ins, and the commands in cli/main.py) does not: no file states it.
    """
    deep = [' > '.join(chain) for chain in chains().values() if len(chain) > MOST_DEPTH]
    assert not deep


def test_files_classes_and_functions_are_short():
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            most = MOST_LINES.get(type(node))
            if most is None:
                continue
            if isinstance(node, ast.Module):
                what, lines = name, max((child.end_lineno for child in node.body), default=0)
            else:
                what, lines = f'{name}.{node.name}', node.end_lineno - node.lineno + 1
            if lines > most:
                long.append(f'{what}: {lines} lines, at most {most}')
    assert not long


def test_the_ground_stands_on_the_runtime_alone():
    wrong = [
        (name, other)
        for name in MODULES
        for other in own_imports(name)
        if layer(name) >= 5
        and other.partition('.')[0] not in (name.partition('.')[0], *LAYERS['bedrock'])
    ]
    assert not wrong


def test_evaluations_never_see_a_model():
    # Besides the ground: their own package, the type of their data, and prompts.
    allowed = {'prompts', *LAYERS['ground'], *LAYERS['bedrock']}
    wrong = [
        (name, other)
        for name in MODULES
        for other in own_imports(name) - {'evals', 'data.sources'}
        if name.startswith('evals.')
        and not other.startswith('evals._')
        and other.partition('.')[0] not in allowed
    ]
    assert not wrong


def test_plug_ins_are_found_by_name_and_imported_by_nobody():
    wrong = [(name, other) for name in MODULES for other in own_imports(name) if plugin(other)]
    assert not wrong


def test_private_files_are_for_their_own_folder():
    wrong = []
    for name in MODULES:
        for other in own_imports(name):
            folder, _, last = other.rpartition('.')
            # The package itself may import it, and the files in it.
            if last.startswith('_') and folder not in (name, name.rpartition('.')[0]):
                wrong.append((name, other))
    assert not wrong


def test_only_programs_know_config_objects():
    programs = ('cli', 'training', 'planning')
    wrong = [
        name
        for name in MODULES
        if 'ml_collections' in top_imports(name) and name.partition('.')[0] not in programs
    ]
    assert not wrong


def test_no_file_names_tensorflow_or_torch():
    foreign = {'tensorflow', 'torch', 'tensorflow_text', 'keras'}
    wrong = [(name, found) for name in TREES if (found := foreign & top_imports(name))]
    assert not wrong


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
