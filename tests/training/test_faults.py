"""What may befall a run from outside, through the command line: it ends well or says why, and goes
on as if nothing had been.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from support.files import hashes
from support.google_cloud import machine  # noqa: F401
from support.process import ROOT, clip_jax_command, environment, lock_holder
from support.runs import Process, command, rows, summary, train, training

import clip_jax
from clip_jax import checkpoint

STEPS = 12


def assert_complete_and_same(workdir, tiny_run):
    assert training(workdir) == training(tiny_run)
    assert hashes(workdir / 'evals').values().__len__() == 2
    import jax
    import numpy as np

    jax.tree.map(
        np.testing.assert_array_equal,
        clip_jax.load(workdir).variables,
        clip_jax.load(tiny_run).variables,
    )


def finish(workdir, config, *changes):
    done = train(config, workdir, *changes)
    assert done.returncode == 0, done.stderr
    return done


def test_sigterm_saves_and_ends_well(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / 'run'
    process = Process(workdir, tiny_config)
    process.until('step  3/12')
    process.process.send_signal(signal.SIGTERM)
    end = process.end()
    assert end.code == 0
    assert 3 <= end.saved == end.steps[-1] <= 6
    assert f'stopped at step {end.saved} of 12, saved in {workdir}' in end.out
    assert 'SIGTERM: saving after this step' in end.err and 'Traceback' not in end.err
    assert not (workdir / 'summary.json').exists() and not (workdir / 'training.lock').exists()
    finish(workdir, tiny_config, 'eval_every=1', 'checkpoint.every=5')
    assert_complete_and_same(workdir, tiny_run)


def test_signals_to_the_processes_of_the_input_too(tiny_config, tmp_path):
    """As a terminal sends Ctrl-C, and many schedulers SIGTERM: to all of the process group."""
    workers = '--config.data.num_workers=1'
    process = Process(tmp_path / 'run', tiny_config, workers, start_new_session=True)
    process.until('step  2/12')
    for number in signal.SIGINT, signal.SIGTERM:
        os.killpg(process.process.pid, number)
    end = process.end()
    assert end.code == 0 and 'Traceback' not in end.err
    assert 2 <= end.saved == end.steps[-1] <= 5


def test_a_notice_of_the_machine_does_the_same(machine, tiny_config, tmp_path):  # noqa: F811
    process = Process(tmp_path / 'run', tiny_config)
    process.until('step  2/12')
    machine['preempted'] = 'TRUE'
    end = process.end()
    assert end.code == 0 and 'this machine will be preempted (preempted: TRUE)' in end.err
    assert 2 <= end.saved < STEPS and f'stopped at step {end.saved} of 12' in end.out


def test_a_second_training_on_the_same_directory_is_refused(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(tiny_run, workdir)
    (workdir / 'summary.json').unlink()
    with lock_holder(workdir) as first:
        before = hashes(workdir)
        second = train(tiny_config, workdir)
        assert hashes(workdir) == before
        first.kill()
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f'{workdir}: another training writes to it' in line
    assert f'process {first.pid}' in line
    finish(workdir, tiny_config)


def test_an_evaluation_that_was_cut_short_is_made_up_for(
    tiny_config, tiny_run, tmp_path, monkeypatch
):
    """As after a kill in the evaluation of step 8, which is saved before."""
    workdir = tmp_path / 'run'
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / 'checkpoints/12')
    (workdir / 'summary.json').unlink()
    lines = [x for x in rows(workdir) if x['step'] <= 8 and (x['step'] < 8 or 'loss' in x)]
    text = ''.join(json.dumps(x) + '\n' for x in lines)
    (workdir / 'metrics.jsonl').write_text(text)
    before = hashes(workdir / 'checkpoints')
    best = '--config.checkpoint.keep_best=1', '--config.checkpoint.best_metric=zeroshot/top_1'
    refused = command('train', f'--config={tiny_config}', f'--workdir={workdir}', *best)
    assert refused.returncode == 1 and "best_metric: there is no 'zeroshot/top_1'" in refused.stderr
    assert hashes(workdir / 'checkpoints') == before
    # The time of earlier attempts counts too.
    read = checkpoint.read_about
    monkeypatch.setattr(checkpoint, 'read_about', lambda path: {**read(path), 'seconds': 1e6})
    done = finish(workdir, tiny_config)
    assert 1e6 < summary(workdir)['seconds'] < 1e6 + 500
    assert 'resumes from step 8 of 12' in done.stdout
    assert_complete_and_same(workdir, tiny_run)
    found = [x['step'] for x in rows(workdir) if 'zeroshot/top1' in x]
    assert found == [x['step'] for x in rows(tiny_run) if 'zeroshot/top1' in x]


def test_a_damaged_checkpoint_is_not_believed(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(tiny_run, workdir)
    (workdir / 'summary.json').unlink()
    data = next((workdir / 'checkpoints/12/variables/ocdbt.process_0/d').iterdir())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)

    listed = command('checkpoint', 'list', workdir)
    assert listed.returncode == 0 and 'newest complete: step 12' in listed.stdout  # by sizes
    checked = command('checkpoint', 'verify', workdir)
    assert checked.returncode == 1
    assert 'CORRUPT' in checked.stdout and 'newest valid: step 8' in checked.stdout
    assert f'the content of variables/ocdbt.process_0/d/{data.name}' in checked.stdout
    used = command('checkpoint', 'verify', workdir / 'checkpoints/8')
    assert used.returncode == 0 and 'zeroshot/top1' not in used.stderr

    done = finish(workdir, tiny_config)
    assert 'corrupt, kept as *.damaged: step 12: the content of variables' in done.stdout
    assert 'resumes from step 8 of 12' in done.stdout
    assert_complete_and_same(workdir, tiny_run)
    assert next((workdir / 'checkpoints/12.damaged').rglob(data.name)).read_bytes() == content
    listed = command('checkpoint', 'list', workdir)
    assert 'not a step' in listed.stdout
    assert 'loss' in listed.stdout and 'zeroshot/top1' in listed.stdout


def test_what_is_wrong_with_checkpoint_commands_is_one_line(tmp_path):
    for arguments, message in (
        (('list', tmp_path), 'no checkpoint found'),
        (('verify', tmp_path / 'none'), 'no such file or folder'),
        (('list', tmp_path, '--sampled'), "no flag '--sampled'"),
    ):
        done = command('checkpoint', *arguments)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and message in line


def test_a_run_that_no_longer_learns_stops_and_keeps_its_checkpoint(tiny_config, tmp_path):
    workdir, flags = (
        tmp_path / 'run',
        ('optimizer.learning_rate=1e30', 'skip_updates.max_consecutive=3'),
    )
    flags = [f'--config.{flag}' for flag in (*flags, 'checkpoint.every=1', 'eval_every=50')]
    done = command('train', f'--config={tiny_config}', f'--workdir={workdir}', *flags)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert '3 updates in a row' in line and 'the newest checkpoint is of step' in line
    skipped = [row['skipped/nonfinite'] for row in training(workdir)]
    assert skipped[0] == 0 and skipped[-1] >= 3 and 'updates skipped' in done.stderr
    # The newest is of the last step whose update was made.
    made = [row['step'] for row in training(workdir) if not row['skipped/nonfinite']]
    assert checkpoint.find(workdir).name == str(made[-1])


@pytest.mark.parametrize(
    ('limit', 'message'),
    [
        ('card', 'the checkpoint of step 12 could not be written'),
        pytest.param(16, 'File too large; its checkpoints are intact', marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_harms_nothing(tiny_config, tiny_run, tmp_path, limit, message):
    """No file may grow beyond so many KiB: the size of the card, which is a part of a file of a
    checkpoint, or less.
    """
    workdir = tmp_path / 'run'
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / 'checkpoints/12')
    (workdir / 'summary.json').unlink()
    before = hashes(workdir / 'checkpoints')
    arguments = clip_jax_command('train', f'--config={tiny_config}', f'--workdir={workdir}')
    if limit == 'card':
        limit = (workdir / 'card.json').stat().st_size // 1024 + 1
    done = subprocess.run(
        ['bash', '-c', f'ulimit -f {limit} && exec "$@"', 'bash', *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    now = hashes(workdir / 'checkpoints')
    assert {k: v for k, v in now.items() if 'unsealed' not in k} == before
    assert checkpoint.find(workdir).name == '8'


def campaign(names, config, workdir, *flags):
    script = ROOT / 'experiments/faults/campaign.py'
    arguments = f'--config={config}', f'--workdir={workdir}', '--config.eval_every=4', *flags
    done = subprocess.run(
        [sys.executable, str(script), *names, *arguments],
        capture_output=True,
        text=True,
        env=environment(alone=False),
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_several_processes_survive_ten_kills(tiny_config, tmp_path):
    campaign(['kill'], tiny_config, tmp_path, '--config.total_steps=200', '--times=10')
