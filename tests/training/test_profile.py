"""A trace of some steps of a run: which steps, with which names, and that it changes nothing."""

import os
import re
import signal

import jax
import pytest
from etils import epath
from support.runs import summary, train, training

from clip_jax.training import profile

WINDOW = 'profile.start_step=5', 'profile.steps=5'


def traced(path) -> list[int]:
    """The steps that a trace has."""
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [e for plane in data.planes for line in plane.lines for e in line.events]
    return sorted(dict(e.stats)['step_num'] for e in events if e.name == 'train')


def names(path) -> set[str]:
    """The names of operations of the train step in a trace."""
    found = re.findall(rb'jit\(train_step\)/([\x20-\x7e]+)', epath.Path(path).read_bytes())
    return {name.decode() for name in found}


@pytest.mark.slow
def test_steps_are_traced_also_where_the_run_stops_and_resumes(
    tiny_config, tiny_run, tmp_path, monkeypatch
):
    workdir, end = tmp_path / 'run', profile.Window.end

    def stop_at_5(window, step, numbers):
        end(window, step, numbers)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(profile.Window, 'end', stop_at_5)
        done = train(tiny_config, workdir, *WINDOW)
    assert done.returncode == 0 and 'stopped at step 7 of 12' in done.stdout, done.stderr
    assert f'steps-5-7: traced in {workdir}/profile' in done.stdout
    done = train(tiny_config, workdir, *WINDOW)
    assert done.returncode == 0, done.stderr
    folders = [f'profile/plugins/profile/steps-{steps}' for steps in ('5-7', '8-9')]
    assert summary(workdir)['profile'] == folders
    assert done.stdout.splitlines()[-1].endswith(', profile/')
    first, second = (workdir / folder / 'process-0.xplane.pb' for folder in folders)
    assert (traced(first), traced(second)) == ([5, 6, 7], [8, 9])
    assert training(workdir) == training(tiny_run)
    for part in (
        'image/transformer/block_0/attention/qkv',
        'text/transformer/block_0/mlp',
        'jvp(loss)',
        'optimizer/',
    ):
        assert any(part in name for name in names(second)), part


def test_a_window_that_has_passed_is_not_repeated(tmp_path):
    window = profile.Window({'start_step': 2, 'steps': 3}, epath.Path(tmp_path))
    for step in range(5, 8):
        with window.step(step, ()):
            pass
        window.end(step, ())
    window.close()
    assert profile.traces(epath.Path(tmp_path)) == []


def test_every_process_has_a_file_of_its_own(tmp_path, monkeypatch):
    for process in range(2):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        window = profile.Window({'start_step': 1, 'steps': 1}, epath.Path(tmp_path))
        with window.step(1, ()):
            pass
        window.end(1, ())
    (folder,) = profile.traces(epath.Path(tmp_path))
    files = sorted((tmp_path / folder).iterdir())
    assert [path.name for path in files] == ['process-0.xplane.pb', 'process-1.xplane.pb']
    assert [traced(path) for path in files] == [[1], [1]]


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ((None, 0), 'profile.steps is 0; expected at least 1'),
        ((0, 5), 'profile.start_step is 0; expected 1 to 8, so that 5 of 12 steps'),
        ((9, 5), 'profile.start_step is 9; expected 1 to 8, so that 5 of 12 steps'),
        ((1, 13), 'profile.steps is 13; expected at most total_steps, which is 12'),
    ],
)
def test_a_window_that_the_run_does_not_have(values, message):
    start_step, steps = values
    with pytest.raises(ValueError, match=message):
        profile.check({'start_step': start_step, 'steps': steps}, 12)


def test_windows_at_both_ends_of_a_run_are_accepted():
    for start_step, steps in ((None, 100), (1, 12), (8, 5), (12, 1)):
        profile.check({'start_step': start_step, 'steps': steps}, 12)
