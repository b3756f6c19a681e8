"""docs/extend.md as a user would follow it: its files in an empty folder, its commands in order."""

import csv
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from support.process import ROOT, clip_jax_command, environment

import clip_jax
from clip_jax.cli import main

PAGE = (ROOT / 'docs/extend.md').read_text()
FILES = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
BASH = re.findall(r'^```bash\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    shlex.split(line)[1:]
    for line in '\n'.join(BASH).replace('\\\n', ' ').splitlines()
    if line.startswith('clip-jax')
]
TRAIN, EVAL, PLOT, REFUSED, TRAIN_STANDARD, CONVERT = COMMANDS
CLOCK = re.compile('second|wait')


def train(folder: Path) -> str:
    """Runs the page's first command in a process; returns its output."""
    # Without the current folder on the path, as for the installed command.
    env = {**environment(), 'PYTHONSAFEPATH': '1'}
    done = subprocess.run(
        clip_jax_command(*TRAIN), cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    """The folder of the page's files, with a trained run in runs/mine."""
    folder = tmp_path_factory.mktemp('outside') / 'my_project'
    for name, text in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / 'my_clip/__init__.py').touch()
    train(folder)
    return folder


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    """The project as the current folder, and on the path of this process."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    return project


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    return end.value.code


def metrics(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in row.items() if not CLOCK.search(k)} for row in rows]


def test_the_page_has_one_of_each():
    assert [name for name, _ in FILES] == [
        'my_clip/convnet.py',
        'my_clip/bag.py',
        'my_clip/margin.py',
        'my_clip/sign.py',
        'my_clip/drawn.py',
        'my_clip/gap.py',
        'my_clip/words.py',
        'my_clip/csv_file.py',
        'my_config.py',
    ]


def test_it_trains_and_evaluates(project):
    workdir = project / 'runs/mine'
    rows = metrics(workdir)
    assert [row['step'] for row in rows if 'loss' in row] == [*range(1, 9)]
    last = {k: v for row in rows for k, v in row.items()}
    assert {'gap/gap', 'gap/shift', 'colors/top1', 'accuracy/image_to_text'} <= {*last}
    card = json.loads((workdir / 'card.json').read_text())
    assert card['model']['image']['name'] == 'my_clip.convnet'
    assert card['model']['text']['name'] == 'my_clip.bag'
    assert card['tokenizer']['name'] == 'my_clip.words'
    assert json.loads((workdir / 'config.json').read_text())['loss']['margin'] == 0.2


def test_its_writer_gets_the_same_numbers(project):
    with (project / 'runs/mine/metrics.csv').open(newline='') as file:
        ours = {(int(step), name): float(value) for step, name, value in csv.reader(file)}
    for row in metrics(project / 'runs/mine'):
        for name in ('loss', 'gap/gap'):
            if name in row:
                assert ours[row['step'], name] == pytest.approx(row[name], rel=1e-6)


def test_it_resumes_exactly(project, inside, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'copy'
    shutil.copytree(project, folder)
    workdir = folder / 'runs/mine'
    shutil.rmtree(workdir / 'checkpoints/8')
    (workdir / 'summary.json').unlink()
    monkeypatch.chdir(folder)
    assert run(TRAIN) == 0, capsys.readouterr().err
    assert metrics(workdir) == metrics(project / 'runs/mine')
    ours, theirs = (
        (path / 'metrics.csv').read_text().splitlines() for path in (workdir, project / 'runs/mine')
    )
    assert [line.rpartition(',')[0] for line in ours] == [
        line.rpartition(',')[0] for line in theirs
    ]


@pytest.mark.slow
def test_its_parameters_are_sharded_by_its_own_axes(inside):
    """A fresh step on a mesh with fsdp: kernels of the plug-ins need LOGICAL_AXES."""
    assert jax.device_count() == 8
    small = ['--workdir=runs/sharded', '--config.total_steps=2', '--config.mesh.fsdp=2']
    small += ['--config.optimizer.warmup_steps=1']
    assert run(['train', TRAIN[1], *small]) == 0


def test_evaluation_and_report(inside, capsys):
    assert run(EVAL) == 0, capsys.readouterr().err
    report = json.loads(Path('gap.json').read_text())
    for name in ('gap', 'shift'):
        assert report['scores'][name]['better'] == 'lower'
        assert 0 <= report['scores'][name]['value'] <= 2
    assert report['counts']['examples'] == 32
    assert run(PLOT) == 0, capsys.readouterr().err
    html = Path('runs/mine/plots/index.html').read_text()
    assert 'shift' in html and 'my_clip.gap' in html


def test_options_of_the_evaluation_are_in_its_help(inside, capsys):
    run(['eval', 'my_clip.gap', '--help'])
    shown = capsys.readouterr().out
    assert '--limit' in shown and '--reference' in shown


def test_an_unknown_option_of_the_loss_is_an_error(inside, capsys):
    config = Path('wrong.py')
    config.write_text(Path('my_config.py').read_text().replace("'margin': 0.2", "'marign': 0.2"))
    assert run(['train', '--config=wrong.py', '--workdir=runs/wrong']) == 1
    assert 'margin' in capsys.readouterr().err
    assert not Path('runs/wrong/config.json').exists()


def test_a_layout_without_a_place_for_its_encoder_says_so(inside, capsys):
    assert run(REFUSED) == 1
    assert 'my_clip.convnet' in capsys.readouterr().err
    assert not Path('exported').exists()


def test_with_our_encoders_it_is_exported(inside, capsys):
    small = ['--config.total_steps=2', '--config.optimizer.warmup_steps=1']
    assert run([*TRAIN_STANDARD, *small]) == 0, capsys.readouterr().err
    assert run(CONVERT) == 0, capsys.readouterr().err
    ours, exported = clip_jax.load('runs/standard'), clip_jax.load('exported')
    texts = ['a red picture', 'something gray']
    tokens = ours.tokenizer(texts)
    np.testing.assert_allclose(exported.encode_text(tokens), ours.encode_text(texts), atol=1e-5)
    if exported.tokenizer is not None:
        np.testing.assert_array_equal(exported.tokenizer(texts), tokens)
