"""Several processes on one machine: they find each other, train as one, and say what is wrong."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support.process import ROOT, clip_jax_command, environment, free_port
from support.small_training import batch, on_one_device, setup

from clip_jax import checkpoint
from clip_jax.runtime import multihost

CONNECT = """
import sys
from clip_jax.runtime import multihost
address, process = sys.argv[1:]
multihost.initialize(address, 2, int(process), timeout=60)
print(multihost.run_on_primary(lambda: {'words': ['ä', 1.5]}))
print(multihost.all_reduce_max(7 * int(process)))
print(multihost.all_gather_objects({'process': process, 'long': int(process) * 'x'}))
for meet in (
    lambda: multihost.run_on_primary(lambda: int('wrong')),
    lambda: multihost.primary_first(lambda: int(f'wrong in {process}')),
    lambda: multihost.run_on_primary(lambda: open('/none')),
    lambda: multihost.raise_on_all(ValueError('of the second') if process == '1' else None),
):
    try:
        meet()
    except (ValueError, OSError) as error:
        print('CAUGHT', error)
"""


def start(program: str, *arguments: object) -> subprocess.Popen:
    """Starts a Python program with these arguments."""
    return subprocess.Popen(
        [sys.executable, '-c', program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def test_two_processes_connect_and_exchange_values_and_errors():
    address = f'localhost:{free_port()}'
    running = [start(CONNECT, address, i) for i in range(2)]
    for process in running:
        out, err = process.communicate(timeout=200)
        lines = [line for line in out.splitlines() if '[Gloo]' not in line]
        assert lines == [
            "{'words': ['ä', 1.5]}",
            '7',
            "[{'process': '0', 'long': ''}, {'process': '1', 'long': 'x'}]",
            "CAUGHT invalid literal for int() with base 10: 'wrong'",
            "CAUGHT invalid literal for int() with base 10: 'wrong in 0'",
            "CAUGHT [Errno 2] No such file or directory: '/none'",
            'CAUGHT of the second',
        ], err


END = """
import sys
from clip_jax.runtime import multihost
address, process, with_an_error = sys.argv[1:]
multihost.initialize(address, 2, int(process), timeout=60)
print('READY', flush=True)
if process in with_an_error:
    multihost.exit_together(3)
multihost.barrier('the other')
"""


@pytest.mark.parametrize('with_an_error', [pytest.param('01', marks=pytest.mark.slow), '1'])
def test_an_error_ends_a_process_soon_whether_others_have_it_or_not(with_an_error):
    address = f'localhost:{free_port()}'
    command = [sys.executable, '-c', END, address]
    running = [
        subprocess.Popen([*command, str(i), with_an_error], stdout=subprocess.PIPE, env=of_tests())
        for i in range(2)
    ]
    for process in running:
        assert any(b'READY' in line for line in process.stdout)  # others print there, too
    began = time.monotonic()
    assert [running[int(i)].wait(timeout=100) for i in with_an_error] == [3] * len(with_an_error)
    assert time.monotonic() - began < 30  # JAX alone waits for five minutes
    for process in running:
        process.kill()
        process.communicate()


def test_an_unreachable_coordinator_is_an_error_in_time():
    port = free_port()
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf'--coordinator.*localhost:{port}'):
        multihost.initialize(f'localhost:{port}', 2, 1, timeout=1)
    assert time.monotonic() - start < 5


def test_a_port_in_use_is_an_error():
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
        running = start(REFUSED, f'localhost:{port}', 2, 0, 5)
        out, err = running.communicate(timeout=100)
    assert f'ERROR --coordinator localhost:{port}' in out, err


REFUSED = """
import sys
from absl import logging
from clip_jax.runtime import multihost
logging.set_verbosity(logging.INFO)
address, processes, process, timeout = sys.argv[1:]
try:
    multihost.initialize(address, int(processes), int(process), timeout=int(timeout))
except ValueError as error:
    print('ERROR', error)
"""


def test_different_numbers_of_processes_are_an_error_in_all():
    address = f'localhost:{free_port()}'
    for process in [start(REFUSED, address, 2, 0, 60), start(REFUSED, address, 3, 1, 60)]:
        out, err = process.communicate(timeout=200)
        assert 'ERROR --num-processes is 3 in process 1 and 2 in process 0' in out, err


def test_before_jax_aborts_for_a_missing_process_the_log_says_what_to_check():
    running = start(REFUSED, f'localhost:{free_port()}', 2, 0, 2)
    _, err = running.communicate(timeout=100)
    assert running.returncode == -signal.SIGABRT
    said = err.partition('DEADLINE_EXCEEDED')[0]
    assert 'process 0 of 2' in said and '--num-processes' in said


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('nonsense', 2, 0), "--coordinator is 'nonsense'; expected HOST:PORT"),
        (('localhost:1', 2, 2), '--process-id is 2, --num-processes 2; expected 0 to 1'),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        multihost.initialize(*arguments, timeout=1)


def test_a_part_of_the_flags_is_refused(clip_jax_cli, tiny_config, tmp_path):
    flags = f'--config={tiny_config}', f'--workdir={tmp_path / "x"}', '--num-processes=2'
    done = clip_jax_cli('train', *flags)
    assert done.returncode == 1 and '--process-id' in done.stderr
    assert not (tmp_path / 'x').exists()


def of_tests() -> dict[str, str]:
    """For programs of two devices that import what tests share."""
    env = environment(2)
    return {**env, 'PYTHONPATH': f'{env["PYTHONPATH"]}{os.pathsep}{ROOT / "tests"}'}


def train(processes: int, devices: int, *arguments: str) -> None:
    """Trains in so many processes of so many devices each."""
    address = f'localhost:{free_port()}'
    running = [
        subprocess.Popen(
            clip_jax_command(
                'train',
                *arguments,
                f'--coordinator={address}',
                f'--num-processes={processes}',
                f'--process-id={i}',
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(devices, alone=False),
        )
        for i in range(processes)
    ]
    said = [process.communicate(timeout=500)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, said
    assert 'summary.json' in said[0]
    assert all('summary.json' not in other for other in said[1:])


def losses(workdir) -> dict[int, float]:
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return {x['step']: x['loss'] for x in map(json.loads, lines) if 'loss' in x}


@pytest.mark.parametrize('others', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_train_and_others_go_on_as_one_would(others, tiny_config, tiny_run, tmp_path):
    """With patch dropout, augmentation, checkpoints and evaluations."""
    workdir = tmp_path / 'run'
    arguments = f'--config={tiny_config}', f'--workdir={workdir}'
    train(2, 2, *arguments)
    expected = losses(tiny_run)
    assert losses(workdir).keys() == expected.keys()
    np.testing.assert_allclose([*losses(workdir).values()], [*expected.values()], rtol=1e-5)
    report, of_one = (
        json.loads((run / 'evals/retrieval.json').read_text()) for run in (workdir, tiny_run)
    )
    for found in (report, of_one):
        del found['seconds'], found['model']
    # Similarities are rounded to four digits, which two trainings may round differently.
    matrices = [x['similarity'].pop('matrix') for x in (report, of_one)]
    np.testing.assert_allclose(*matrices, rtol=0, atol=2e-4)
    assert report == of_one

    os.remove(workdir / 'summary.json')
    shutil.rmtree(workdir / 'checkpoints/12')
    train(others, 4 // others, *arguments)
    np.testing.assert_allclose([*losses(workdir).values()], [*expected.values()], rtol=1e-5)
    assert (workdir / 'checkpoints/12').is_dir()


RESTORE = """
import hashlib, sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from clip_jax import checkpoint
from clip_jax.runtime import multihost
address, process, folder = sys.argv[1:]
multihost.initialize(address, 2, int(process), timeout=60)
from support.small_training import VIT, batch, setup
start, step, put = setup(4, fsdp=2)
checkpoints = checkpoint.Checkpoints(folder, keep=2)
state = checkpoints.restore(checkpoints.newest()[0], start)
leaves = [multihost_utils.process_allgather(x, tiled=True) for x in jax.tree.leaves(state)]
digest = hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in leaves)).hexdigest()
data = {k: v[:] for k, v in batch(5).items()}
mine = {k: v[int(process) * 8:][:8] for k, v in data.items()}
sharding = jax.tree.map(lambda _: put.keywords['device'], data)
data = jax.tree.map(jax.make_array_from_process_local_data, sharding, mine)
print('RESTORED', digest, float(step(state, data)[1]['loss']))
checkpoints.close()
"""


def test_two_processes_restore_what_one_saved(tmp_path):
    """To the last bit, sharded over data and fsdp, and train on as the one does."""
    current, step, put = setup(1)
    for i in range(5):
        current, _ = step(current, put(batch(i)))
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(5, current, {})
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(current)]
    digest = hashlib.sha256(b''.join(leaves)).hexdigest()
    loss = float(step(current, put(batch(5)))[1]['loss'])

    address = f'localhost:{free_port()}'
    running = [
        subprocess.Popen(
            [sys.executable, '-c', RESTORE, address, str(i), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=of_tests(),
        )
        for i in range(2)
    ]
    for process in running:
        said = process.communicate(timeout=200)[0]
        _, found, next_loss = said[said.index('RESTORED') :].split()
        assert found == digest
        np.testing.assert_allclose(float(next_loss), loss, rtol=1e-6)


STEPS = """
import sys
import jax
import numpy as np
from clip_jax.runtime import multihost
address, process, encoder, loss, out = sys.argv[1:]
multihost.initialize(address, 2, int(process), timeout=60)
from support.small_training import steps
losses, state = steps(4, encoder, loss={'name': loss, 'implementation': 'ring'})
if multihost.is_primary():
    leaves = jax.tree.leaves((state.params, state.buffers))
    np.savez(out, losses, *map(np.asarray, leaves))
"""


@pytest.mark.slow
@pytest.mark.parametrize('encoder', ['vit', 'resnet'])
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_two_processes_of_two_devices_train_as_one_device(encoder, loss, tmp_path):
    address, rest = f'localhost:{free_port()}', (encoder, loss, str(tmp_path / 'out.npz'))
    running = [
        subprocess.Popen([sys.executable, '-c', STEPS, address, str(i), *rest], env=of_tests())
        for i in range(2)
    ]
    assert [process.wait(timeout=500) for process in running] == [0, 0]
    losses, *leaves = np.load(tmp_path / 'out.npz').values()
    expected, state = on_one_device(encoder, loss)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for x, y in zip(leaves, jax.tree.leaves((state.params, state.buffers)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
