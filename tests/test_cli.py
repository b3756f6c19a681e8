"""Wrong input gets one line that says what is wrong, exit code 1, and nothing is written."""

import functools
import hashlib
import io
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from support.process import environment

import clip_jax
from clip_jax.cli import main
from clip_jax.runtime import checksums

COMMANDS = ('train', 'eval', 'embed', 'convert', 'checkpoint', 'data', 'plan', 'plot')


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its content, and its folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else 'folder'
        for path in sorted(folder.rglob('*'))
    }


def tar(path: Path, **members: bytes) -> str:
    """Writes a tar shard; returns its SPEC."""
    with tarfile.open(path, 'w') as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture
def line(capfd, tmp_path):
    """Runs a command that fails: returns its one line, after checking that nothing was written."""

    def run(*arguments) -> str:
        before = hashes(tmp_path)
        with pytest.raises(SystemExit) as end:
            main.main([str(argument) for argument in arguments])
        error = capfd.readouterr().err
        assert end.value.code == 1
        *progress, last, end = error.split('\n')
        assert last.startswith(f'clip-jax {arguments[0]}: ')
        assert end == ''
        assert progress == []
        assert hashes(tmp_path) == before
        return last.removeprefix(f'clip-jax {arguments[0]}: ')

    return run


@pytest.fixture
def train(line, tiny_config, tmp_path):
    """Trains the tiny config with other values, which fails: returns the line that says why."""

    def run(*changes, config=tiny_config) -> str:
        changes = [f'--config.{change}' for change in changes]
        workdir = tmp_path / 'run'
        return line('train', f'--config={config}', f'--workdir={workdir}', *changes)

    return run


@pytest.fixture
def bad_tar(tiny_tars, tmp_path) -> str:
    """SPEC of the tiny shard with one picture, 00020.jpg, spoilt."""
    path = tmp_path / 'bad.tar'
    with tarfile.open(tiny_tars.removeprefix('tars:')) as old, tarfile.open(path, 'w') as new:
        for member in old:
            data = old.extractfile(member).read()
            data = b'x' * len(data) if member.name == '00020.jpg' else data
            new.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture
def one_name(tmp_path) -> Path:
    """A file of class names that are all the same."""
    path = tmp_path / 'one_name.txt'
    path.write_text('red\nred\nred\nred\n')
    return path


# train


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
        ('batch_size=many', '--config.batch_size=many: invalid literal'),
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
        ('data.augment.crop_scale=(0.5,)', 'crop_scale (0.5,) is not a pair'),
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
        ('batch_size=12', 'not a multiple of microbatches 1 x 8 devices'),
        ('batch_size=128', 'larger than the data set, which has 64'),
        ('batch_size=0', 'batch_size is 0; expected at least 1'),
        ('log_every=0', 'log_every is 0; expected at least 1'),
        ('eval_every=0', 'eval_every is 0; expected at least 1'),
        ('checkpoint.every=0', 'checkpoint.every is 0; expected at least 1'),
        ('checkpoint.keep=0', 'checkpoint.keep is 0; expected at least 1'),
        ('total_steps=0', 'total_steps 0'),
    ],
)
def test_a_value_that_cannot_be(train, change, message):
    assert message in train(change)


def test_a_config_file_that_is_missing(train, tiny_config):
    line = train(config=tiny_config.with_name('tniy.py'))
    assert 'there is no file' in line
    assert 'found beside it: default.py, tiny.py' in line
    assert 'found beside it: nothing' in train(config='/no/such/folder/x.py')


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


@pytest.mark.parametrize('flag', ['--config.total_steps', '--conf.seed=1', 'seed=1', '--seed=1'])
def test_what_is_no_flag(line, tiny_config, tmp_path, flag):
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}', flag
    assert f'there is no flag {flag!r}' in line('train', *flags)


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


def test_an_unreadable_picture_in_the_evaluation_data_is_named(train, bad_tar):
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
    assert 'total_steps is 12 there, 13 here' in message
    assert 'model.embed_dim is 16 there, 8 here' in message
    assert hashes(tiny_run) == before


def test_a_folder_with_other_things_stays_as_it_is(line, tiny_config, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    for workdir in tmp_path, tmp_path / 'notes.txt':
        message = line('train', f'--config={tiny_config}', f'--workdir={workdir}')
        assert f'{workdir}: not empty and no run directory' in message


# eval


@pytest.fixture
def evaluate(line, tiny_run, tiny_tars, tmp_path):
    """Evaluates the tiny run, which fails: returns the line that says why."""

    def run(name, *options, model=tiny_run, data=tiny_tars) -> str:
        out = f'--out={tmp_path / "report.json"}'
        return line('eval', name, f'--model={model}', f'--data={data}', out, *options)

    return run


def test_an_unknown_evaluation_or_option(evaluate, tiny_tars):
    assert "Did you mean 'zeroshot'?" in evaluate('zerosht')
    assert "Did you mean 'classes'?" in evaluate('zeroshot', '--clases=all')
    assert "no 'templates'" in evaluate('retrieval', '--templates=plain')
    assert "Did you mean 'text_exts'?" in evaluate('zeroshot', '--data.text_ext=txt')
    assert "there is no flag '--fast'" in evaluate('zeroshot', '--fast')
    assert "there is no flag 'more'" in evaluate('zeroshot', 'more')
    assert "Did you mean 'general'?" in evaluate('zeroshot', '--classes=all', '--templates=generel')


def test_data_that_cannot_be_evaluated(evaluate, bad_tar, one_name):
    assert "no file matches '/no/x.tar'" in evaluate('zeroshot', data='tars:/no/x.tar')
    assert 'not of the form KIND:ADDRESS' in evaluate('zeroshot', data='/no/x.tar')
    assert 'does not name its classes' in evaluate('zeroshot')
    assert "are named 'red'" in evaluate('zeroshot', f'--classes={one_name}')
    few = '--classes=["red", "green"]'
    assert 'classes is an empty list' in evaluate('zeroshot', '--classes=[]')
    json_file = one_name.with_suffix('.json')
    json_file.write_text('{"a": ["red"], "b": ["x"]}')
    assert 'say with `key` which one' in evaluate('zeroshot', f'--classes={json_file}')
    assert 'lacks the {}' in evaluate('zeroshot', few, '--templates=["a photo"]')
    assert 'go up to 3, but there are 2 class names' in evaluate('zeroshot', few)
    names = '--classes=["red", "green", "blue", "white"]'
    for name, options in ('zeroshot', [names]), ('retrieval', []):
        line = evaluate(name, *options, data=bad_tar)
        assert 'bad.tar: 00020.jpg: ' in line
        assert 'not a readable image' in line


def test_flags_that_do_not_go_together(line, tiny_run, tiny_tars):
    model, data = f'--model={tiny_run}', f'--data={tiny_tars}'
    for flags in ([model], [model, model, data], [model, data, '--suite=x.py']):
        said = line('eval', 'retrieval', *flags)
        assert 'retrieval: expected --data=SPEC, one --model=PATH' in said
    assert '--model must be given' in line('eval', 'retrieval', data)


@pytest.mark.parametrize('option', ['--classes=5', '--classes=[1, 2, 3, 4]', '--templates=5'])
def test_options_of_a_wrong_type(evaluate, option):
    options = [option] if 'classes' in option else [option, '--classes=["a", "b", "c", "d"]']
    name = option[2:].partition('=')[0]
    assert name in evaluate('zeroshot', *options)


def test_a_model_that_is_not_there(evaluate, tmp_path):
    names = '--classes=["red", "green", "blue", "white"]'
    for path, message in (
        (tmp_path / 'none', 'there is no such file or folder'),
        (tmp_path, 'no checkpoint found'),
    ):
        line = evaluate('zeroshot', names, model=path)
        assert line.startswith(f'{path}: {message}')


def test_a_report_that_exists_is_not_overwritten(evaluate, tmp_path):
    (tmp_path / 'report').mkdir()
    assert 'report exists; name a new file' in evaluate('retrieval')
    (tmp_path / 'report.json').write_text('mine')
    assert 'report.json exists; name a new file' in evaluate('retrieval')
    assert 'a name that ends in .json' in evaluate('retrieval', f'--out={tmp_path / "r"}')
    remote = evaluate('retrieval', '--out=gs://bucket/r.json')
    assert '--out: gs://bucket/r.json: expected a place on this machine' in remote


def test_a_report_is_written(capfd, tiny_run, tiny_tars, tmp_path):
    out = tmp_path / 'new' / 'report.json'
    with pytest.raises(SystemExit) as end:
        main.main(
            ['eval', 'retrieval', f'--model={tiny_run}', f'--data={tiny_tars}', f'--out={out}']
        )
    printed = capfd.readouterr()
    assert (end.value.code, printed.err) == (0, '')
    report = json.loads(out.read_text())
    assert (
        f'recall@10      {report["scores"]["text_to_image/recall@10"]["value"]:.4f}' in printed.out
    )
    assert (
        f'report: {out}\nfigures in {out.parent}/report: similarity.png, queries.png' in printed.out
    )
    assert {path.name for path in out.parent.iterdir()} == {'report', 'report.json'}
    assert (report['model'], report['data'], report['options']) == (str(tiny_run), tiny_tars, {})
    assert (report['compute_dtype'], report['device']) == ('float32', 'cpu')
    assert report['data_options'] == report['left_out'] == {}


def test_options_of_data_are_those_of_a_mixture_and_stand_in_the_report(
    capfd, line, evaluate, tiny_run, tiny_tars, tmp_path
):
    out, mixed = tmp_path / 'report.json', f'3 * {tiny_tars} + 1 * {tiny_tars}'
    assert 'has no caption' in evaluate('retrieval', '--data.text_exts=["cap"]', data=mixed)
    several = f'{tiny_tars} + folder:{tmp_path}'
    said = evaluate('retrieval', '--data.text_exts=["cap"]', data=several)
    assert '--data.text_exts: SPEC names several kinds of sources (tars, folder)' in said
    arguments = f'--model={tiny_run}', f'--data={mixed}', f'--out={out}', '--dtype=bfloat16'
    with pytest.raises(SystemExit) as end:
        main.main(['eval', 'retrieval', *arguments, '--data.text_exts=["txt"]'])
    assert end.value.code == 0
    report = json.loads(out.read_text())
    assert report['data_options'] == {'tars': {'text_exts': ['txt']}}
    assert report['compute_dtype'] == 'bfloat16'
    assert "dtype: there is no 'half'" in evaluate('retrieval', '--dtype=half')
    assert report['versions']['jax'] and report['seconds'] > 0


# convert


def test_a_run_is_written_for_another_library(capfd, tiny_run, tmp_path):
    folder = tmp_path / 'exported'
    with pytest.raises(SystemExit) as end:
        main.main(['convert', str(tiny_run), str(folder), '--layout=huggingface'])
    printed = capfd.readouterr().out
    assert end.value.code == 0
    parameters = json.loads((tiny_run / 'summary.json').read_text())['parameters']
    assert f'{parameters:,} parameters; read back' in printed
    assert re.search(r'text/token_embedding/embedding +text_model\.embeddings\.token_emb', printed)
    assert "different: preprocess.rgb 'after' becomes 'before'" in printed
    assert f'in {folder}: config.json, model.safetensors, preprocessor_config.json' in printed
    # The exported folder scores as the run does.
    texts = ['a red picture', 'something green']
    rows = [clip_jax.load(path).encode_text(texts) for path in (tiny_run, folder)]
    np.testing.assert_array_equal(*rows)


def test_what_cannot_be_converted(line, tiny_run, tmp_path):
    convert = functools.partial(line, 'convert')
    layout = '--layout=open_clip'
    assert 'no such file or folder' in convert(tmp_path / 'none', tmp_path / 'x', layout)
    assert 'exists; name a new folder' in convert(tiny_run, tmp_path, layout)
    assert "Did you mean 'open_clip'" in convert(tiny_run, tmp_path / 'x', '--layout=openclip')
    assert "there is no 'openai'" in convert(tiny_run, tmp_path / 'x', '--layout=openai')
    assert 'cannot hold this model' in convert(tiny_run, tmp_path / 'x', '--layout=big_vision')
    assert "there is no flag '--dtype=x'" in convert(tiny_run, tmp_path, layout, '--dtype=x')
    (tmp_path / 'x.pt').write_bytes(b'')
    assert 'found a file' in convert(tmp_path / 'x.pt', tmp_path / 'x', layout)


# data


def succeed(capfd, *arguments) -> str:
    """Runs a command that ends well: returns what it says."""
    with pytest.raises(SystemExit) as end:
        main.main([str(argument) for argument in arguments])
    printed = capfd.readouterr()
    assert (end.value.code, printed.err) == (0, '')
    return printed.out


def test_data_is_inspected(capfd, tiny_tars, tmp_path):
    out = tmp_path / 'new' / 'looked'
    said = succeed(capfd, 'data', 'inspect', tiny_tars, '--sample=40', f'--out={out}')
    assert re.search(r'^records +64$', said, re.MULTILINE)
    assert re.search(r'^captions +min 2; median 2; 95% 2; max 2$', said, re.MULTILINE)
    assert f'in {out}: contact_sheet.png, histograms.png, inspect.json' in said
    report = json.loads((out / 'inspect.json').read_text())
    assert (report['records'], report['sample'], report['formats']) == (64, 40, {'JPEG': 40})


def test_data_is_verified(capfd, tiny_tars, bad_tar, tmp_path):
    assert re.search(r'^all_usable +True$', succeed(capfd, 'data', 'verify', tiny_tars), re.M)
    out = tmp_path / 'new' / 'bad.jsonl'
    with pytest.raises(SystemExit) as end:
        main.main(['data', 'verify', bad_tar, f'--out={out}', '--no-decode', '--threads=3'])
    said = capfd.readouterr().out
    assert end.value.code == 1
    assert re.search(r'^not_an_image: .*bad.tar: 00020.jpg: ', said)
    assert re.search(r'^bad +not_an_image 1$', said, re.MULTILINE)
    (line,) = out.read_text().splitlines()
    assert json.loads(line)['record'] == 20


def test_our_warnings_are_shown(clip_jax_cli, tmp_path):
    image = np.random.default_rng(0).bytes(9 << 20)
    path = tmp_path / 'large.parquet'
    table = pyarrow.table({'image': [image[i:] for i in range(4)], 'caption': list('abcd')})
    pyarrow.parquet.write_table(table, path, use_dictionary=False)
    said = clip_jax_cli('data', 'verify', f'table:{path}', '--no-decode').stderr
    assert 'has row groups of 36 MB, and one is decoded for each image' in said


@pytest.mark.parametrize(
    ('path', 'level', 'shown'),
    [
        (main.__file__, logging.INFO, True),
        ('/lib/grain/python/x.py', logging.WARNING, True),
        ('/lib/grain/python/x.py', logging.INFO, False),
        ('/lib/orbax/checkpoint/x.py', logging.ERROR, False),
    ],
)
def test_lines_of_the_log_that_are_shown(path, level, shown):
    record = logging.LogRecord('absl', level, path, 1, 'text', (), None)
    assert main._is_for_users(record) == shown


def test_data_is_imported_and_trained_on(capfd, bad_tar, tiny_config, clip_jax_cli, tmp_path):
    flags = 'data', 'import', bad_tar, tmp_path / 'sets', '--name=tiny', '--shard-size=40'
    said = succeed(capfd, *flags, '--label_ext=none')
    assert re.search(r'^records +63$', said, re.MULTILINE)
    assert re.search(r'^with_label +0$', said, re.MULTILINE)
    assert re.search(r'^left_out +not_an_image 1$', said, re.MULTILINE)
    again = succeed(capfd, *flags, '--label_ext=none', '--threads=1')
    assert re.search(r'^shards_written +0$', again, re.MULTILINE)
    advice = said.splitlines()[-1].removeprefix('train on it: ').split()
    done = clip_jax_cli(
        'train',
        f'--config={tiny_config}',
        f'--workdir={tmp_path / "run"}',
        '--config.total_steps=1',
        '--config.optimizer.warmup_steps=0',
        *advice,
    )
    assert done.returncode == 0, done.stderr


def test_data_that_is_not_there_or_wrongly_asked_for(line, tiny_tars, tmp_path):
    data = functools.partial(line, 'data')
    for action in ('inspect', 'verify'):
        assert 'not of the form KIND:ADDRESS' in data(action, 'x.tar')
        assert "no file matches '/no/x.tar'" in data(action, 'tars:/no/x.tar')
        assert "Did you mean 'text_exts'?" in data(action, tiny_tars, '--text_ext=txt')
        assert "there is no flag '--fast'" in data(action, tiny_tars, '--fast')
        assert '--threads is 0; expected at least 1' in data(action, tiny_tars, '--threads=0')
        assert 'exists; name a new one' in data(action, tiny_tars, f'--out={tmp_path}')
        mixture = f'{tiny_tars} + tfds:shapes_captions/test'
        assert 'several kinds of sources' in data(action, mixture, '--data_dir=x')
    assert 'sample is 0' in data('inspect', tiny_tars, '--sample=0')


def test_imports_that_cannot_be(line, tiny_tars, tmp_path):
    def write(*options, spec=tiny_tars) -> str:
        return line('data', 'import', spec, tmp_path / 'sets', '--name=tiny', *options)

    assert "no file matches '/no/x.tar'" in write(spec='tars:/no/x.tar')
    assert "Did you mean 'text_exts'?" in write('--text_ext=txt')
    assert 'quality is 101; expected 1 to 100' in write('--quality=101', '--size=20')
    assert 'weights are for training' in write(spec=f'3 * {tiny_tars} + {tiny_tars}')
    assert 'expected --beam-runner too' in write('--beam.direct_num_workers=2')
    assert "split is 'train[:9]'" in write('--split=train[:9]')


# checkpoint


def verify(capfd, path, code) -> tuple[str, str]:
    """Runs `clip-jax checkpoint verify`: what it prints, and its errors."""
    with pytest.raises(SystemExit) as end:
        main.main(['checkpoint', 'verify', str(path)])
    printed = capfd.readouterr()
    assert end.value.code == code, printed
    return printed


def test_one_checkpoint_under_another_name_is_verified(capfd, tmp_path):
    best = tmp_path / 'best'
    (best / 'variables').mkdir(parents=True)
    (best / 'variables' / 'x').write_text('abc')
    checksums.write(epath.Path(best))
    out, _ = verify(capfd, best, 0)
    assert ' MB  valid' in out and 'newest valid: best' in out
    (best / 'variables' / 'x').write_text('abd')
    out, _ = verify(capfd, best, 1)
    assert 'CORRUPT' in out and 'newest valid: none' in out


def test_checkpoints_are_verified_without_their_numbers(capfd, tmp_path):
    step = tmp_path / 'checkpoints' / '3'
    (step / 'about').mkdir(parents=True)
    checksums.write(epath.Path(step))
    lines = tmp_path / 'metrics.jsonl'
    lines.write_text('{"step": 3, "loss": 2.5, "zs/top1": 0.5, "skipped/spike": 1}\n')
    score = {'value': 0.5, 'better': 'higher', 'unit': 'fraction'}
    report = {'type': 'zeroshot', 'data': 'folder:x', 'scores': {'top1': score}}
    (tmp_path / 'evals').mkdir()
    (tmp_path / 'evals' / 'zs.json').write_text(json.dumps(report))
    assert 'loss 2.5, zs/top1 0.5\n' in verify(capfd, tmp_path, 0).out
    lines.write_text('{"step": 1}\n{"st\n{"step": 3, "loss": 2.5}\n')
    out, err = verify(capfd, tmp_path, 0)
    assert 'newest valid: step 3' in out
    assert f'metrics are not shown: {lines}, line 2' in err


# plot


def test_a_plot_needs_a_run(line, tmp_path):
    assert f'{tmp_path}: not a run directory' in line('plot', f'--workdir={tmp_path}')
    assert 'not a run directory' in line('plot', f'--workdir={tmp_path / "none"}')
    assert "there is no flag '--dpi=3'" in line('plot', f'--workdir={tmp_path}', '--dpi=3')


def test_a_plot_needs_metrics(line, tiny_run, tmp_path):
    shutil.copy(tiny_run / 'config.json', tmp_path)
    assert 'no metrics.jsonl' in line('plot', f'--workdir={tmp_path}')


def test_runs_are_compared_in_one_page(capfd, tiny_run, tmp_path, monkeypatch):
    other = tmp_path / 'other'
    other.mkdir()
    for name in 'config.json', 'metrics.jsonl', 'summary.json':
        shutil.copy(tiny_run / name, other)
    before = hashes(tiny_run)
    out = tmp_path / 'new' / 'compare.html'
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main.main(
            ['plot', f'--workdir={tiny_run}', '--workdir=~/other', '--out=~/new/compare.html']
        )
    printed = capfd.readouterr()
    assert (end.value.code, printed.out, printed.err) == (0, f'{out}\n', '')
    assert out.read_text().count('<img') == 1
    assert hashes(tiny_run) == before


def test_what_a_page_needs(line, tiny_run, tmp_path):
    here, out = f'--workdir={tiny_run}', f'--out={tmp_path / "x.html"}'
    (tmp_path / 'there.html').write_text('mine')
    (tmp_path / 'x.json').write_text('{}')
    assert 'expected --workdir=DIR, or --report' in line('plot')
    assert '--out: expected a file to write' in line('plot', here, f'--workdir={tmp_path}')
    assert '--out: expected a file to write' in line('plot', '--report=x.json')
    for name in 'there.html', 'x.png':
        said = line('plot', here, f'--out={tmp_path / name}')
        assert f'{name}: expected a new name that ends in .html' in said
    below = f'--out={tmp_path / "x.json" / "x.html"}'
    assert f'{tmp_path / "x.json"} is no folder' in line('plot', '--report=/no/x.json', below)
    assert 'expected different ones' in line('plot', here, here, out)
    assert 'not a report of an eval' in line('plot', here, f'--report={tmp_path / "x.json"}', out)
    assert '/no/x.json: no such file' in line('plot', '--report=/no/x.json', out)
    assert 'not a run directory' in line('plot', here, f'--workdir={tmp_path}', out)


# the program


@pytest.mark.parametrize(
    'arguments',
    [
        (),
        ('trian',),
        ('train',),
        ('train', '--config=x.py'),
        ('train', '--workdir=x'),
        ('eval', '--model=x', '--data=y'),
        ('embed', '--model=x', '--data=y'),
        ('convert', 'x', 'y'),
        ('convert', 'x', '--layout=open_clip'),
        ('data',),
        ('data', 'export'),
        ('data', 'inspect'),
        ('data', 'verify', '--out=x'),
        ('data', 'import', 'x'),
        ('data', 'import', 'x', 'y'),
    ],
)
def test_wrong_usage_shows_the_usage(capfd, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main.main(list(arguments))
    error = capfd.readouterr().err
    assert end.value.code == 2
    assert error.startswith('usage: clip-jax')
    assert 'error: ' in error.splitlines()[-1]
    assert hashes(tmp_path) == {}


@pytest.mark.parametrize('command', [*COMMANDS, 'data inspect', 'data verify', 'data import'])
def test_help_explains_with_an_example(capfd, command):
    with pytest.raises(SystemExit) as end:
        main.main([*command.split(), '--help'])
    assert end.value.code == 0
    text = capfd.readouterr().out
    examples = text.partition('example')[2]
    assert f'  clip-jax {command} ' in examples
    assert max(map(len, text.splitlines())) <= 100
    for example in examples.split('clip-jax ')[1:]:
        assert example.startswith(command)


def test_help_knows_every_command(capfd):
    with pytest.raises(SystemExit):
        main.main(['--help'])
    text = capfd.readouterr().out
    assert set(main.COMMANDS) == set(COMMANDS)
    assert all(f'    {command} ' in text for command in COMMANDS)


def test_help_and_usage_errors_are_quick():
    program = """
import sys
from clip_jax.cli import main
for arguments in '--help', 'train --help', 'data import --help', 'plot --help', 'eval':
    try:
        main.main(arguments.split())
    except SystemExit:
        pass
print('imported:', {'jax', 'numpy', 'flax', 'grain', 'tensorflow_datasets'} & {*sys.modules})
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.splitlines()[-1] == 'imported: set()', done.stderr


def test_the_real_program_says_one_line_too(clip_jax_cli, tiny_config, tmp_path):
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}'
    done = clip_jax_cli('train', *flags, '--config.loss.name=softmx')
    assert done.returncode == 1
    assert done.stderr.startswith("clip-jax train: losses: there is no 'softmx'. Did you mean")
    assert done.stderr.count('\n') == 1
    assert hashes(tmp_path) == {}


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('CLIP_JAX_TRACEBACK', '1')
    with pytest.raises(SystemExit) as ended:
        main.main(['plot', f'--workdir={tmp_path}'])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith('Traceback') and 'run directory' in said


FAULTS = """
import resource, sys
import numpy as np
from clip_jax.runtime.environment import keep_freed_memory

if sys.argv[1] == 'keep':
    keep_freed_memory()
np.ones(2**24, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**24, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has mallopt')
def test_freed_memory_is_kept_instead_of_fetched_from_the_kernel_again():
    def faults(how: str) -> int:
        command = [sys.executable, '-c', FAULTS, how]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults('keep') * 10 < faults('default')
