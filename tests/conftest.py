"""Eight simulated devices for every test in this process, and small data that tests share."""

import functools
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.process import (  # before JAX
    COLORS,
    ROOT,
    SCRATCH,
    cache_only_programs_of_one_device,
    clip_jax_command,
    environment,
)
from support.runs import command

# Files that take minutes come first, so that no process of the tests waits long for the other.
LONG = (
    'test_hosts',
    'test_runs',
    'test_faults',
    'test_sharding',
    'test_train_command',
    'test_checkpoint',
)


def pytest_configure() -> None:
    cache_only_programs_of_one_device()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, 'workerinput'):  # the workers of pytest-xdist end before
        shutil.rmtree(SCRATCH, ignore_errors=True)


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
    c.figures = False  # to draw takes half of the time of so small a run
    c.data.train = {tiny_tars!r}
    c.data.augment.crop_scale = (0.6, 1.0)
    c.data.augment.flip = 0.5
    c.tokenizer.update(name='sentencepiece', vocab_size=40, context_length=12)
    c.model.preset, c.model.embed_dim = '', 16
    small = dict(width=32, depth=1, heads=2, mlp_dim=64)
    c.model.image.update(image_size=16, patch_size=8, patch_dropout=0.25, **small)
    c.model.text.update(**small)
    c.optimizer.update(learning_rate=3e-3, warmup_steps=2)
    c.evals.zeroshot = ConfigDict(dict(
        type='zeroshot', data=c.data.train, classes={str(classes)!r}, templates=['a {{}} picture']))
    c.evals.retrieval = ConfigDict(dict(type='retrieval', data=c.data.train))
    return c.lock()
""")
    return config


@pytest.fixture(scope='session', autouse=True)
def one_device_mesh() -> Iterator[Callable]:
    """Makes `sharding.make_mesh()` a mesh of one device: to compile for eight takes long.

    Meshes of given devices, or with fsdp or tensor parallelism, are as they were; a test that wants
    the mesh of all eight devices passes `jax.devices()`, or asks for the fixture `all_devices`.
    """
    import jax

    from clip_jax import sharding

    original = sharding.make_mesh

    @functools.wraps(original)
    def make_mesh(devices=None, **sizes: int):
        if devices is None and {*sizes.values()} <= {1}:
            devices = jax.local_devices()[:1]
        return original(devices, **sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', make_mesh)
        yield original


@pytest.fixture
def all_devices(one_device_mesh, monkeypatch) -> None:
    """Makes `sharding.make_mesh()` the mesh of all eight devices, as it is outside of tests."""
    monkeypatch.setattr('clip_jax.sharding.make_mesh', one_device_mesh)


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
def tiny_run(tiny_config, tmp_path_factory) -> Path:
    """The run directory of `tiny_config`, trained to its end through the command line."""
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    done = command(
        'train', f'--config={tiny_config}', f'--workdir={workdir}', '--config.figures=True'
    )
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
