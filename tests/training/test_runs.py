"""Whole runs through the command line: what they leave, that they learn, and that stopping them
changes nothing.
"""

import importlib.metadata
import json
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.files import hashes
from support.process import clip_jax_command, environment
from support.runs import End, Process, command, rows, summary, train, training

import clip_jax
from clip_jax import checkpoint

STEPS = 12
MEASURED = {'loss', 'accuracy/image_to_text', 'grad_norm', 'logit_scale', 'learning_rate'}


# What a run leaves


def test_a_run_directory_holds_what_is_promised(tiny_run):
    there = {path.name for path in tiny_run.iterdir()}
    events = {name for name in there if name.startswith('events.')}
    assert len(events) == 1
    assert there - events == {
        'config.json',
        'card.json',
        'metrics.jsonl',
        'checkpoints',
        'evals',
        'plots',
        'summary.json',
    }
    for path in tiny_run.rglob('*.json'):
        assert isinstance(json.loads(path.read_text()), dict), path
    assert {path.stem for path in (tiny_run / 'evals').iterdir()} == {'zeroshot', 'retrieval'}
    assert {path.name for path in (tiny_run / 'checkpoints').iterdir()} == {'8', '12'}


def test_the_config_is_complete(tiny_run, tiny_tars):
    config = json.loads((tiny_run / 'config.json').read_text())
    assert config['data']['train'] == tiny_tars
    assert (config['total_steps'], config['optimizer']['name']) == (STEPS, 'adamw')
    about = checkpoint.read_about(checkpoint.find(tiny_run))
    assert about['config'] == config
    assert about['card'] == json.loads((tiny_run / 'card.json').read_text())


def test_the_summary_has_the_last_numbers_and_what_they_depend_on(tiny_run):
    last = summary(tiny_run)
    final = {k: v for row in rows(tiny_run) if row['step'] == STEPS for k, v in row.items()}
    for name in ('loss', 'zeroshot/top1', 'retrieval/image_to_text/recall@1'):
        assert last[name] == final[name]
    assert (last['step'], last['pairs'], last['devices']) == (STEPS, 16 * STEPS, '1 x cpu')
    assert last['versions']['jax'] == importlib.metadata.version('jax')
    assert last['versions']['clip_jax'] == clip_jax.__version__
    assert last['parameters'] > 10_000
    assert last['seconds'] > 0
    assert last['pairs_per_second'] > 0


def test_figures_are_pictures(tiny_run):
    figures = summary(tiny_run)['figures']
    assert {f'plots/{p.name}' for p in (tiny_run / 'plots').iterdir()} == set(figures)
    of_zeroshot = {'zero_shot', 'per_class', 'confusion', 'calibration'}
    of_retrieval = {'similarity', 'queries'}
    # Whether it makes mistakes depends on rounding.
    names = {Path(figure).stem for figure in figures} - {'mistakes'}
    assert names == {'training', *of_zeroshot, *of_retrieval}
    for figure in figures:
        with Image.open(tiny_run / figure) as image:
            assert min(image.size) > 300
            assert len(image.getcolors(image.width * image.height)) > 10


def test_reports_say_what_was_scored_and_when(tiny_run, tiny_tars):
    for name in ('zeroshot', 'retrieval'):
        report = json.loads((tiny_run / 'evals' / f'{name}.json').read_text())
        assert (report['type'], report['data'], report['step']) == (name, tiny_tars, STEPS)
        assert (report['compute_dtype'], report['device']) == ('float32', 'cpu')
        assert report['seconds'] > 0 and report['versions'].keys() >= {'clip_jax', 'jax'}
    assert report['options'] == {}
    keys = {key for row in rows(tiny_run) for key in row}
    assert 'retrieval/text_to_image/median_rank' in keys
    assert not keys & {'zeroshot/seconds', 'zeroshot/chance', 'zeroshot/images'}


def test_every_step_stands_once_in_the_metrics(tiny_run):
    assert [row['step'] for row in training(tiny_run)] == list(range(1, STEPS + 1))
    assert all(row.keys() >= MEASURED for row in training(tiny_run))
    evaluations = [row['step'] for row in rows(tiny_run) if 'zeroshot/top1' in row]
    assert evaluations == [0, 4, 8, STEPS]


def test_training_learns(tiny_run):
    losses = [row['loss'] for row in training(tiny_run)]
    assert np.mean(losses[-4:]) < np.mean(losses[:2]) - 0.5
    first, *_, last = [row['zeroshot/top1'] for row in rows(tiny_run) if 'zeroshot/top1' in row]
    assert last > 0.75
    assert last > first


# What other commands make of it


def test_the_same_command_again_changes_nothing(tiny_run, tiny_config):
    before = hashes(tiny_run)
    done = command('train', f'--config={tiny_config}', f'--workdir={tiny_run}')
    assert (done.returncode, done.stderr) == (0, '')
    assert 'this run is complete (12 steps); nothing to do' in done.stdout
    assert f'zeroshot/top1 {summary(tiny_run)["zeroshot/top1"]:.4f}' in ' '.join(
        done.stdout.split()
    )
    assert hashes(tiny_run) == before


def test_an_evaluation_afterwards_finds_the_same_numbers(
    tiny_run, tiny_config, tiny_tars, tmp_path
):
    before = hashes(tiny_run)
    done = command(
        'eval',
        'zeroshot',
        f'--model={tiny_run}',
        f'--data={tiny_tars}',
        f'--classes={tiny_config.with_name("colors.txt")}',
        '--templates=["a {} picture"]',
        f'--out={tmp_path / "report.json"}',
    )
    assert (done.returncode, done.stderr) == (0, '')
    report = json.loads((tmp_path / 'report.json').read_text())
    in_training = json.loads((tiny_run / 'evals/zeroshot.json').read_text())
    others = 'step', 'seconds', 'data_options'  # a config has all, with their defaults
    assert report.items() >= {k: v for k, v in in_training.items() if k not in others}.items()
    assert report['scores']['top1']['value'] == summary(tiny_run)['zeroshot/top1']
    assert hashes(tiny_run) == before


# A run that begins from a checkpoint


def begin(config, workdir, path, *changes, steps=2):
    """Trains a few steps from a checkpoint."""
    more = f'init_from={path}', f'total_steps={steps}', 'optimizer.warmup_steps=1', *changes
    return train(config, workdir, *more)


@pytest.mark.parametrize(
    'layout', ['clip_jax', 'open_clip', pytest.param('huggingface', marks=pytest.mark.slow)]
)
def test_a_run_begins_with_the_weights_of_a_checkpoint(tiny_run, tiny_config, tmp_path, layout):
    path, workdir = tiny_run, tmp_path / 'run'
    if layout != 'clip_jax':
        path = tmp_path / 'exported'
        assert command('convert', tiny_run, path, f'--layout={layout}').returncode == 0
    done = begin(tiny_config, workdir, path)
    assert done.returncode == 0, done.stderr
    first = next(row for row in rows(workdir) if 'zeroshot/top1' in row)
    assert first['step'] == 0 and first['zeroshot/top1'] == summary(tiny_run)['zeroshot/top1']
    card, origin = (json.loads((x / 'card.json').read_text()) for x in (workdir, tiny_run))
    assert card['tokenizer'] == origin['tokenizer']
    if layout == 'clip_jax':
        assert card == origin
    # What was trained a while has a smaller loss than random numbers have.
    assert training(workdir)[0]['loss'] < training(tiny_run)[0]['loss']


def test_a_run_goes_on_with_larger_images_and_needs_its_origin_no_more(
    tiny_run, tiny_config, tmp_path
):
    origin, workdir = tmp_path / 'origin', tmp_path / 'run'
    shutil.copytree(tiny_run, origin)
    change = 'model.image.image_size=24'
    done = begin(tiny_config, workdir, origin, change)
    assert done.returncode == 0, done.stderr
    assert clip_jax.load(workdir).model.image.image_size == 24

    # As after a kill before the first save: not on from random numbers.
    shutil.rmtree(workdir / 'checkpoints')
    (workdir / 'summary.json').unlink()
    (workdir / 'card.json').write_text('{"model": "damaged"}')
    before = training(workdir)
    again = begin(tiny_config, workdir, origin, change)
    assert again.returncode == 0, again.stderr
    assert training(workdir) == before

    (workdir / 'summary.json').unlink()
    shutil.rmtree(origin)
    card = (workdir / 'card.json').read_text()
    (workdir / 'card.json').write_text(card.replace('24', '25'))
    again = begin(tiny_config, workdir, origin, change)
    assert again.returncode == 0, again.stderr
    assert 'resumes from step 2 of 2' in again.stdout
    assert (workdir / 'card.json').read_text() == card


def test_what_does_not_fit_is_one_line(tiny_config, tmp_path):
    """A layer of 256 GB, where no process may have more than 16."""
    arguments = f'--config={tiny_config}', f'--workdir={tmp_path / "run"}'
    command = clip_jax_command('train', *arguments, '--config.model.text.mlp_dim=2000000000')
    limited = ['bash', '-c', 'ulimit -v 16000000 && exec "$@"', 'bash', *command]
    done = subprocess.run(limited, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 1
    assert 'clip-jax train: out of memory' in done.stderr and 'microbatches' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_the_compiled_step_is_found_again(tiny_config, tiny_run, clip_jax_cli, tmp_path):
    programs = tmp_path / 'compiled'
    for name in ('first', 'second'):
        before = {*programs.glob('jit_train_step-*-cache')}
        flags = f'--config={tiny_config}', f'--workdir={tmp_path / name}'
        done = clip_jax_cli('train', *flags, f'--config.compilation_cache={programs}')
        assert done.returncode == 0, done.stderr
        assert training(tmp_path / name) == training(tiny_run)
    assert before and {*programs.glob('jit_train_step-*-cache')} == before


def test_a_complete_run_is_extended_where_it_was(tiny_run, tiny_config, tmp_path):
    workdir, moved = tmp_path / 'run', tmp_path / 'moved.tar'
    shutil.copytree(tiny_run, workdir)
    data = json.loads((workdir / 'config.json').read_text())['data']['train']
    shutil.copyfile(data.removeprefix('tars:'), moved)
    changes = 'total_steps=14', f'data.train=tars:{moved}'
    refused = train(tiny_config, workdir, *changes)
    assert refused.returncode == 1 and '--allow-change=' in refused.stderr
    flags = [f'--config.{change}' for change in changes]
    allow = f'--workdir={workdir}', '--allow-change=data.train,total_steps'
    done = command('train', f'--config={tiny_config}', *flags, *allow)
    assert done.returncode == 0, done.stderr
    assert 'resumes from step 12 of 14' in done.stdout
    assert [row['step'] for row in training(workdir)] == list(range(1, 15))
    assert training(workdir)[:STEPS] == training(tiny_run) and summary(workdir)['step'] == 14
    shorter = command('train', f'--config={tiny_config}', f'--workdir={workdir}', allow[1])
    assert shorter.returncode == 1
    assert 'total_steps is 12' in shorter.stderr and 'at step 14 already' in shorter.stderr


def test_a_checkpoint_of_another_architecture_is_refused(tiny_run, tiny_config, tmp_path):
    done = begin(tiny_config, tmp_path / 'run', tiny_run, 'model.text.mlp_dim=32')
    assert done.returncode == 1 and not (tmp_path / 'run').exists()
    heading, *items = done.stderr.splitlines()
    assert heading.startswith('clip-jax train: init_from') and len(items) == 3
    bias = 'params/text/transformer/block_0/mlp/in/bias is float32 (64,), expected float32 (32,)'
    assert any(bias in item for item in items)
    done = begin(tiny_config, tmp_path / 'run', tmp_path / 'none')
    assert done.returncode == 1 and 'no such file or folder' in done.stderr


def test_figures_can_be_drawn_again(tiny_run):
    before = hashes(tiny_run)
    figures = [tiny_run / name for name in summary(tiny_run)['figures']]
    for figure in figures:
        figure.unlink()
    done = command('plot', f'--workdir={tiny_run}')
    assert (done.returncode, done.stderr) == (0, '')
    page = tiny_run / 'plots' / 'index.html'
    assert {Path(line) for line in done.stdout.split()} == {*figures, page}
    assert page.read_text().count('<img') == len(figures)
    page.unlink()
    assert hashes(tiny_run) == before


# Stopped and taken up again


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('stopped') / 'run'


@pytest.fixture(scope='module')
def ends(workdir, tiny_config) -> list[End]:
    """The ends of four processes of one run: killed after step 1, stopped softly after step 2 and
    hard after step 7, left alone.
    """
    killed = Process(workdir, tiny_config)
    killed.until('step  1/12')
    killed.process.kill()
    ends = [killed.end()]

    soft = Process(workdir, tiny_config)
    soft.until('step  2/12')
    soft.interrupt()
    ends.append(soft.end())

    hard = Process(workdir, tiny_config)
    hard.until('step  7/12')
    hard.interrupt()
    hard.until('once more')
    hard.interrupt()
    ends.append(hard.end())

    return [*ends, Process(workdir, tiny_config).end()]


def test_what_was_killed_before_its_first_checkpoint_starts_again(ends):
    killed, soft, *_ = ends
    assert (killed.code, killed.steps[0], killed.saved) == (-signal.SIGKILL, 1, 0)
    assert 'resumes from step' not in soft.out
    assert soft.steps == list(range(1, len(soft.steps) + 1))


def test_ctrl_c_saves_and_stops(ends, workdir):
    soft = ends[1]
    assert soft.code == 130
    assert 2 <= soft.saved == soft.steps[-1] < STEPS
    assert f'stopped at step {soft.saved} of 12, saved in {workdir}' in soft.out
    assert 'saving after this step' in soft.err
    assert 'Traceback' not in soft.err


def test_ctrl_c_twice_stops_at_once(ends):
    _, soft, hard, _ = ends
    assert f'resumes from step {soft.saved} of 12' in hard.out
    assert 'stopped at step' not in hard.out
    assert (hard.code, hard.err.splitlines()[-1]) == (130, 'interrupted')
    assert 'Traceback' not in hard.err
    assert hard.saved == 5  # the last that was written before
    assert 7 <= hard.steps[-1] < STEPS


def test_the_run_goes_on_at_the_last_checkpoint(ends, workdir):
    last = ends[-1]
    assert last.code == 0, last.err
    assert 'resumes from step 5 of 12' in last.out
    assert (last.steps, last.saved) == (list(range(1, STEPS + 1)), STEPS)
    assert [r['step'] for r in rows(workdir) if 'zeroshot/top1' in r] == list(range(STEPS + 1))
    assert (workdir / 'summary.json').exists()


def test_what_was_stopped_ends_as_what_was_not(ends, workdir, tiny_run):
    assert training(workdir) == training(tiny_run)
    leaves, names = jax.tree.flatten(clip_jax.load(workdir).variables)
    expected, expected_names = jax.tree.flatten(clip_jax.load(tiny_run).variables)
    assert names == expected_names
    for leaf, wanted in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    for name in ('zeroshot/top1', 'retrieval/text_to_image/recall@5', 'loss'):
        assert summary(workdir)[name] == summary(tiny_run)[name]
