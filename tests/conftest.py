"""Eight simulated devices for every test in this process, and small data that tests share."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before any test imports JAX: one CPU passes for eight devices, in this process only.
SIMULATED = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {SIMULATED}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling takes most of the tests' time. Programs that tests start are compiled as users' are, and
# so is what asks for the fixture `optimized`.
UNOPTIMIZED = 'JAX_DISABLE_MOST_OPTIMIZATIONS'
os.environ.setdefault(UNOPTIMIZED, '1')
# Indices of tars of these tests are of no use to anybody afterwards.
os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='clip_jax-tests-')
# Programs that tests start find what an earlier one compiled: many train the same small model.
CACHE = {
    'JAX_COMPILATION_CACHE_DIR': os.path.join(os.environ['XDG_CACHE_HOME'], 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}

ROOT = Path(__file__).parents[1]
COLORS = {'red': (210, 30, 30), 'green': (30, 160, 40), 'blue': (40, 50, 200), 'white': (240,) * 3}


# Files that take minutes come first, so that no process of the tests waits long for the other.
LONG = ('test_hosts', 'test_runs', 'test_faults', 'test_sharding', 'test_cli', 'test_checkpoint')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope='session')
def tiny_tars(tmp_path_factory) -> str:
    """SPEC of a tar shard of 64 plain colored JPEGs of 24 to 40 pixels, two captions and a label
    each.
    """
    path = tmp_path_factory.mktemp('tars') / 'tiny-00000.tar'
    rng = np.random.default_rng(0)
    with tarfile.open(path, 'w') as tar:
        for i in range(64):
            label = i % len(COLORS)
            name, color = list(COLORS.items())[label]
            size = (*rng.integers(24, 40, 2), 3)
            pixels = np.clip(np.array(color) + rng.normal(0, 20, size), 0, 255).astype(np.uint8)
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, 'JPEG')
            captions = f'a {name} picture\nsomething {name}\n'
            for ext, data in ('jpg', image.getvalue()), ('txt', captions), ('cls', str(label)):
                data = data if isinstance(data, bytes) else data.encode()
                member = tarfile.TarInfo(f'{i:05}.{ext}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture(scope='session')
def tiny_config(tiny_tars, tmp_path_factory) -> Path:
    """A config file for a model that trains in seconds on `tiny_tars`."""
    folder = tmp_path_factory.mktemp('configs')
    classes = folder / 'colors.txt'
    classes.write_text('\n'.join(COLORS) + '\n')
    (folder / 'default.py').write_text((ROOT / 'configs/default.py').read_text())
    config = folder / 'tiny.py'
    config.write_text(f"""
import default
from ml_collections import ConfigDict

def get_config():
    c = default.get_config().unlock()
    c.batch_size, c.total_steps = 16, 12
    c.log_every, c.eval_every, c.checkpoint.every = 1, 4, 4
    c.data.train = {tiny_tars!r}
    c.data.augment.crop_scale = (0.6, 1.0)
    c.data.augment.flip = 0.5
    c.tokenizer.update(name='sentencepiece', vocab_size=40, context_length=12)
    c.model.preset, c.model.embed_dim = '', 16
    small = dict(width=32, depth=2, heads=2, mlp_dim=64)
    c.model.image.update(image_size=16, patch_size=8, patch_dropout=0.25, **small)
    c.model.text.update(**small)
    c.optimizer.update(learning_rate=3e-3, warmup_steps=2)
    c.evals.zeroshot = ConfigDict(dict(
        type='zeroshot', data=c.data.train, classes={str(classes)!r}, templates=['a {{}} picture']))
    c.evals.retrieval = ConfigDict(dict(type='retrieval', data=c.data.train))
    return c.lock()
""")
    return config


def clip_jax_command(*arguments: str) -> list[str]:
    """The command line of a fresh `clip-jax` process."""
    return [sys.executable, '-c', 'from clip_jax.cli.main import main; main()', *arguments]


def environment(devices: int = 1, *, alone: bool = True) -> dict[str, str]:
    """The environment for programs that tests start: this checkout first, so many CPU devices; one
    that trains `alone` finds what others have compiled.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    flags = os.environ['XLA_FLAGS'].replace(SIMULATED, '').strip()
    if devices > 1:
        flags = f'{flags} --xla_force_host_platform_device_count={devices}'
    # Programs from the cache for several devices wait for each other for ever (jax 0.10.2).
    cache = CACHE if alone and devices == 1 else {}
    return {**os.environ, **cache, 'PYTHONPATH': path, 'XLA_FLAGS': flags, UNOPTIMIZED: '0'}


@pytest.fixture
def optimized() -> Iterator[None]:
    """Has XLA optimize what a test compiles, as it does for users."""
    import jax

    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='session')
def clip_jax_cli():
    """Runs `clip-jax ARGUMENTS` in a process of its own: returns exit code, stdout, stderr."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            clip_jax_command(*map(str, arguments)),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=300,
            **options,
        )

    return run


@pytest.fixture(scope='session')
def tiny_run(tiny_config, clip_jax_cli, tmp_path_factory) -> Path:
    """The run directory of `tiny_config`, trained to its end through the command line."""
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    done = clip_jax_cli('train', f'--config={tiny_config}', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope='session')
def clip(tiny_run):
    """The model of `tiny_run`."""
    import clip_jax

    return clip_jax.load(tiny_run)


@pytest.fixture(scope='session')
def source(tiny_tars):
    """The data of `tiny_tars`, opened."""
    from clip_jax import build

    return build.source(tiny_tars, {})
