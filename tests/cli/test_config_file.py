"""Configs by name and by path, their overrides, and what stands beside them."""

import shutil
import subprocess
import sys
import textwrap

import pytest
from support.process import ROOT, environment

from clip_jax import lookup
from clip_jax.cli import config_file


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch):
    """Forgets the folders and the modules of the configs that a test reads."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    yield
    for name in ('config_config', 'suite_config'):
        sys.modules.pop(name, None)


def test_a_name_is_a_config_that_comes_with_the_package():
    by_name = config_file.read('quickstart', ['--config.batch_size=64'])
    by_path = config_file.read(f'{ROOT}/configs/quickstart.py', ['--config.batch_size=64'])
    assert by_name.batch_size == 64 and by_name.is_locked
    assert by_name.to_dict() == by_path.to_dict()


@pytest.mark.parametrize(
    ('override', 'said'),
    [
        ('total_steps=many', "total_steps is 'many'; expected an integer, such as"),
        ('data.augment.flip=x', "data.augment.flip is 'x'; expected a number, such as"),
        ('total_steps=', "total_steps is ''; expected an integer, such as"),
    ],
)
def test_a_word_where_a_number_is_expected(override, said):
    with pytest.raises(ValueError, match=f'^--config: --config.{said}'):
        config_file.read('quickstart', [f'--config.{override}'])


def test_a_suite_has_a_name_and_an_argument():
    override = '--suite.options.tfds.data_dir=x'
    found = config_file.read('clip27:zeroshot', [override], flag='suite')
    assert found.options.tfds.data_dir == 'x'
    assert 'linear_probe' not in str(found)


@pytest.mark.parametrize(
    ('name', 'flag', 'words'),
    [
        ('quickstrat', 'config', ('--config', 'quickstart', 'flickr8k', '.py')),
        ('quickstart', 'suite', ('--suite', 'clip27')),
        ('configs/quickstrat.py', 'config', ('found beside it', 'quickstart.py')),
        ('/no/such/folder/x.py', 'config', ('found beside it: nothing', 'flickr8k')),
    ],
)
def test_an_unknown_name_lists_what_there_is(name, flag, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=f'--{flag}: there is no') as error:
        config_file.read(name, flag=flag)
    assert all(word in str(error.value) for word in words)


def test_a_file_anywhere_starts_from_the_default_and_has_its_plug_ins_beside_it(tmp_path):
    (tmp_path / 'beside').mkdir()
    (tmp_path / 'beside' / 'my_loss.py').write_text('loss, IMPLEMENTATIONS = max, ()\n')
    (tmp_path / 'mine.py').write_text(
        textwrap.dedent("""
        import default

        def get_config(loss):
            c = default.get_config().unlock()
            c.loss.name = loss
            return c.lock()
        """)
    )
    config = config_file.read(f'{tmp_path}/mine.py:beside.my_loss')
    assert config.seed == 0
    # The folder stays on sys.path: a plug-in is imported only when its part is built.
    assert lookup.module('losses', config.loss.name).loss is max
    assert sys.path[0] == str(tmp_path)
    config_file.read(f'{tmp_path}/mine.py:beside.my_loss')
    assert sys.path.count(str(tmp_path)) == 1


def test_an_installed_package_has_the_configs_inside(tmp_path):
    """As in a wheel: the package without the checkout around it."""
    shutil.copytree(ROOT / 'clip_jax', tmp_path / 'clip_jax')
    shutil.copytree(ROOT / 'configs', tmp_path / 'clip_jax' / 'configs')
    program = """
from clip_jax import lookup
from clip_jax.cli import config_file
print(lookup.configs_folder(), config_file.read('quickstart').total_steps)
"""
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), 'PYTHONPATH': str(tmp_path)},
    )
    folder, steps = done.stdout.split()
    assert folder == f'{tmp_path}/clip_jax/configs' and int(steps) > 0
