"""The wheel: all files of the package, and the configs inside it."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from support.process import ROOT

import clip_jax

pytest.importorskip('setuptools', '77', reason='license expressions need it')


def test_the_wheel_has_every_file_and_the_configs(tmp_path):
    project = tmp_path / 'project'
    project.mkdir()
    ignore = shutil.ignore_patterns('__pycache__')
    for name in 'clip_jax', 'configs':
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE':
        shutil.copy(ROOT / name, project)
    program = 'from setuptools import build_meta; print(build_meta.build_wheel(".."))'
    subprocess.run(
        [sys.executable, '-c', program], cwd=project, check=True, capture_output=True, timeout=200
    )
    (file,) = tmp_path.glob('clipax-*.whl')
    assert file.name == f'clipax-{clip_jax.__version__}-py3-none-any.whl'
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if '.dist-info/' not in name}
        (scripts,) = (name for name in wheel.namelist() if name.endswith('/entry_points.txt'))
        assert 'clip-jax = clip_jax.cli.main:console' in wheel.read(scripts).decode()
    package = {str(p.relative_to(project)) for p in project.glob('clip_jax/**/*') if p.is_file()}
    configs = {f'clip_jax/{p.relative_to(project)}' for p in project.glob('configs/**/*.py')}
    assert names == package | configs and len(configs) > 9
