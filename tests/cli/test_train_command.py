"""`clip-jax train`: exit codes, and bad input: one line on stderr and nothing is written."""

import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from support.files import hashes

from clip_jax.runtime.preemption import SIGINT, SIGTERM, Preempted
from clip_jax.training import loop


def tar(path: Path, **members: bytes) -> str:
    """Writes a tar shard; returns its SPEC."""
    with tarfile.open(path, 'w') as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture
def train(line, tiny_config, tmp_path):
    """Trains the tiny config with other values, which fails: returns the line that says why."""

    def train(*changes, config=tiny_config) -> str:
        changes = [f'--config.{change}' for change in changes]
        workdir = tmp_path / 'run'
        return line('train', f'--config={config}', f'--workdir={workdir}', *changes)

    return train


@pytest.mark.parametrize(
    ('ending', 'code'), [(None, 0), (Preempted(SIGTERM), 0), (Preempted(SIGINT), 130)]
)
def test_exit_codes(run, tiny_config, tmp_path, monkeypatch, ending, code):
    def end(config, workdir, allow_changes):
        if ending:
            raise ending
        return {}

    monkeypatch.setattr(loop, 'train', end)
    assert run('train', f'--config={tiny_config}', f'--workdir={tmp_path}')[0] == code


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('batchsize=8', "--config: there is no 'batchsize'. Did you mean 'batch_size'?"),
        ('model.image.widht=8', "--config.model.image: there is no 'widht'. Did you mean 'width'?"),
        (
            'optimizer.lr=1',
            "--config.optimizer: there is no 'lr'. There are: b1, b2, eps, ",
        ),
        ('evals.zeroshot.clases=all', "Did you mean 'classes'?"),
        ('evals.more.type=zeroshot', "--config.evals: there is no 'more'. There are: retrieval"),
        ('batch_size=many', "--config.batch_size is 'many'; expected an integer"),
        ('model=3', '--config.model=3'),
        ('batch_size.more=3', 'batch_size.more'),
    ],
)
def test_a_wrong_key_or_value_of_the_config(train, change, message):
    assert message in train(change)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('model.image.variant=C/32', "models/image/vit: variant: there is no 'C'"),
        ('model.image.name=vitt', "Did you mean 'vit'?"),
        ('model.image.activation=gleu', "Did you mean 'gelu'?"),
        ('model.image.patch_size=17', 'image_size 16 is smaller than patch_size 17'),
        ('model.image.patch_size=0', 'patch_size is 0; expected at least 1'),
        ('model.embed_dim=0', 'embed_dim is 0; expected at least 1'),
        ('data.augment.crop_scale=(0.5,)', 'crop_scale (0.5,)'),
        ('model.dtype=bf16', "dtype: there is no 'bf16'"),
        ('loss.name=softmx', "Did you mean 'softmax'?"),
        ('loss.implementation=dens', "Did you mean 'dense'?"),
        ('tokenizer.name=sentencepeice', "Did you mean 'sentencepiece'?"),
        ('preprocess.resize=squach', "Did you mean 'squash'?"),
        ('evals.zeroshot.type=zero_shot', "Did you mean 'zeroshot'?"),
        ('evals.retrieval.type=zeroshoot', "Did you mean 'zeroshot'?"),
        ('data.train=tar:x.tar', "data/sources: there is no 'tar'. Did you mean 'tars'?"),
        ('data.train=x.tar', 'not of the form KIND:ADDRESS'),
        ('data.train=tars:/no/such-*.tar', "no file matches '/no/such-*.tar'"),
        ('evals.retrieval.data=tars:/no/such-*.tar', "no file matches '/no/such-*.tar'"),
        ('optimizer.warmup_steps=12', 'warmup_steps is 12'),
        ('microbatches=3', 'not a multiple of microbatches 3 x '),
        ('batch_size=128', 'larger than the data set, which has 64'),
        ('batch_size=0', 'batch_size is 0; expected at least 1'),
        ('profile.start_step=9', 'profile.start_step is 9; expected 1 to 8'),
        ('checkpoint.every=0', 'checkpoint.every is 0; expected at least 1'),
        ('total_steps=0', 'total_steps 0'),
    ],
)
def test_an_invalid_value(train, change, message):
    assert message in train(change)


def test_a_config_file_that_is_missing(train, tiny_config):
    line = train(config=tiny_config.with_name('tniy.py'))
    assert 'there is no file' in line
    assert 'found beside it: default.py, tiny.py.' in line
    assert 'found beside it: nothing.' in train(config='/no/such/folder/x.py')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('def get_config(:\n    pass\n', 'SyntaxError: invalid syntax (wrong.py, line 1)'),
        ('def get_conf():\n    pass\n', "no attribute 'get_config'"),
        ('import no_such_module\n', "No module named 'no_such_module'"),
        ('def get_config():\n    return 1 + None\n', "unsupported operand type(s) for +: 'int'"),
        ('import default\nc = defalt.get_config()\n', "name 'defalt' is not defined"),
        ('import default\nc = default.get_config()\nc.batchsize = 8\n', '"batch_size" instead of'),
    ],
)
def test_a_config_file_that_cannot_be_read(
    train, tiny_config, tmp_path, monkeypatch, text, message
):
    # Python keeps what a config of an earlier test defined.
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)
    shutil.copy(tiny_config.with_name('default.py'), tmp_path)
    config = tmp_path / 'wrong.py'
    config.write_text(text)
    assert message in train(config=config)


def test_an_evaluation_of_the_config_lacks_its_data(train, tiny_config, tmp_path):
    shutil.copytree(tiny_config.parent, tmp_path, dirs_exist_ok=True)
    config = tmp_path / 'tiny.py'
    change = "    c.evals.more = {'type': 'zeroshot'}\n    return c.lock()"
    config.write_text(config.read_text().replace('    return c.lock()', change))
    assert "config.evals.more: there is no 'data'" in train(config=config)


def test_what_is_not_a_flag(line, tiny_config, tmp_path):
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}'
    for flag in '--conf.seed=1', 'seed=1', '--seed=1':
        assert repr(flag) in line('train', *flags, flag)
    assert '--config.total_steps has no value' in line('train', *flags, '--config.total_steps')


def test_data_without_samples(train, tmp_path):
    nothing = tar(tmp_path / 'nothing.tar')
    texts = tar(tmp_path / 'texts.tar', **{'0.txt': b'a cat', '0.json': b'{}'})
    (tmp_path / 'no.tar').write_bytes(b'')
    for spec, message in (
        (nothing, 'the tar is empty'),
        (texts, 'no sample has an image'),
        (f'tars:{tmp_path / "no.tar"}', 'no.tar'),
    ):
        assert message in train(f'data.train={spec}')


def test_data_without_captions_or_labels(train, tiny_tars, tmp_path):
    with tarfile.open(tiny_tars.removeprefix('tars:')) as old:
        members = {m.name: old.extractfile(m).read() for m in old if m.name.endswith('.jpg')}
    spec = tar(tmp_path / 'pictures.tar', **members)
    assert 'no text' in train(f'data.train={spec}')
    assert 'has images without a label' in train(f'evals.zeroshot.data={spec}')
    assert 'pictures.tar: 00000.jpg has no caption' in train(f'evals.retrieval.data={spec}')


def test_an_unreadable_image_in_the_evaluation_data_is_named(train, bad_tar):
    line = train(f'evals.retrieval.data={bad_tar}')
    assert 'bad.tar: 00020.jpg: ' in line
    assert 'not a readable image' in line


def test_class_names_that_are_all_the_same(train, one_name):
    line = train(f'evals.zeroshot.classes={one_name}')
    assert "are named 'red'" in line


def test_a_run_of_another_config_stays_as_it_is(line, tiny_config, tiny_run):
    before = hashes(tiny_run)
    same = f'--config={tiny_config}', f'--workdir={tiny_run}'
    message = line('train', *same, '--config.total_steps=13', '--config.model.embed_dim=8')
    assert f'{tiny_run}: holds a run of another config' in message
    assert 'total_steps is 12 there, 13 now' in message
    assert 'model.embed_dim is 16 there, 8 now' in message
    assert hashes(tiny_run) == before


def test_a_folder_with_other_things_stays_as_it_is(line, tiny_config, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    for workdir in tmp_path, tmp_path / 'notes.txt':
        message = line('train', f'--config={tiny_config}', f'--workdir={workdir}')
        assert f'{workdir}: not empty and no run directory' in message
