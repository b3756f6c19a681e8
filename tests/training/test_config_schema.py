"""A config has the keys of configs/default.py, and no others."""

import pytest
from ml_collections import ConfigDict
from support.process import ROOT
from support.runs import train

from clip_jax import build, lookup, sharding
from clip_jax.cli import config_file
from clip_jax.training import config_schema

PAGES = [str(path) for path in sorted((ROOT / 'configs').glob('*.py'))]


@pytest.fixture
def config() -> ConfigDict:
    """The defaults, unlocked, as a config file changes them."""
    return ConfigDict(config_schema.defaults().to_dict()).unlock()


@pytest.mark.parametrize('page', PAGES)
def test_every_config_that_comes_with_clip_jax_has_known_keys_only(page):
    config_schema.check(config_file.read(page))


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('batchsize', 64, "config: there is no 'batchsize'. Did you mean 'batch_size'?"),
        (
            'data.augment.flips',
            0.5,
            "config.data.augment: there is no 'flips'. Did you mean 'flip'",
        ),
        ('checkpoint.evry', 5, "config.checkpoint: there is no 'evry'. Did you mean 'every'"),
        ('mesh.model', 2, "config.mesh: there is no 'model'"),
        ('model.depth', 2, "config.model: there is no 'depth'"),
        ('data.options.tar', ConfigDict(), "config.data.options: there is no 'tar'"),
        ('data.options.table.keys', 'x', "config.data.options.table: there is no 'keys'"),
        ('mesh', 8, 'config.mesh is 8; expected a ConfigDict with fsdp, shard_optimizer'),
    ],
)
def test_a_key_that_nothing_reads_is_an_error(config, key, value, message):
    config_schema.check(config)
    *parents, last = key.split('.')
    tree = config
    for name in parents:
        tree = tree[name]
    if last in tree:
        del tree[last]  # with its type
    tree[last] = value
    with pytest.raises(ValueError) as error:
        config_schema.check(config)
    assert str(error.value).startswith(message)


def test_a_key_that_is_missing_is_named(config):
    del config['seed']
    with pytest.raises(ValueError, match=r'config lacks seed; start from the defaults: '):
        config_schema.check(config)


def test_sub_trees_of_plug_ins_are_checked_by_them(config):
    config.loss.smoothing = 0.3
    config_schema.check(config)
    with pytest.raises(ValueError, match="losses/softmax: option: there is no 'smoothing'"):
        build.loss(config.loss, sharding.make_mesh())


def test_options_of_a_source_of_ones_own_are_known_where_it_is_used(config):
    config.data.options.mine = ConfigDict({'anything': 1})
    config.data.train = 'my_package.mine:somewhere'
    config_schema.check(config)


def test_the_options_of_our_sources_are_their_parameters(config):
    """So that no option is missing from configs/default.py, or stands there and is not taken."""
    import inspect

    for kind, options in config.data.options.items():
        source = lookup.module('data.sources', kind, 'source').source
        _, *parameters = inspect.signature(source).parameters
        assert {*options} == {*parameters}, kind


@pytest.mark.slow
def test_dims_of_the_loss_are_at_most_the_embeddings(tiny_config, tmp_path):
    done = train(tiny_config, tmp_path / 'run', 'loss.dims=(8,4096)')
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and 'losses: dims is (8, 4096); expected' in line


def test_training_says_so_before_anything_is_written(tiny_config, tmp_path):
    page = tmp_path / 'mine.py'
    page.write_text(f"""
import runpy
def get_config():
    c = runpy.run_path({str(tiny_config)!r})['get_config']().unlock()
    c.batchsize = 64
    return c
""")
    done = train(page, tmp_path / 'run')
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "there is no 'batchsize'" in line
    assert not (tmp_path / 'run').exists()
