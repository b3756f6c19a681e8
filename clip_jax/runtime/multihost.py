"""The processes of a multi-host run, one for each host: connecting them, barriers, all-gathers of
Python objects, and what only the primary process does.
"""

import contextlib
import functools
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clip_jax.runtime import preemption

DAY = 24 * 60 * 60  # seconds
EXIT_TIMEOUT = 5  # seconds that a failed process waits for the others to fail as well
_BARRIERS = itertools.count()  # each name is used once; all processes reach barriers in one order


def initialize(coordinator: str, processes: int, process: int, *, timeout: int) -> None:
    """Connects this process to the others with `jax.distributed.initialize`.

    JAX aborts a process that cannot connect, from C++, where nothing can catch it. Before that can
    happen, the log says what this process waits for and what to check. From then on Ctrl-C exits
    at once, and SIGTERM is held (`preemption`).

    Args:
        coordinator: HOST:PORT at which process 0 listens.
        processes: the number of processes.
        process: the index of this process.
        timeout: seconds to wait for process 0, and then for all the others.

    Raises:
        ValueError: if an argument is malformed, if the port is in use in process 0, if process 0
            cannot be reached in time, if the devices of all processes cannot be connected, or if
            the processes were given different `processes`.
    """
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit():
        raise ValueError(f'--coordinator is {coordinator!r}; expected HOST:PORT of process 0')
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f'--process-id is {process}, --num-processes {processes}; expected 0 to {processes - 1}'
        )
    if process:
        _wait_for_coordinator(host, int(port), timeout)
    else:
        _check_port(coordinator, int(port))
    logging.info(
        'process %d of %d connects at %s. If not all do within %d s, or their numbers differ, JAX '
        'aborts it: check --coordinator, --num-processes and --process-id of every process',
        *(process, processes, coordinator, timeout),
    )
    prepare_signals()
    if process == 0:
        preemption.exit_last()
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)
        preemption.hold()
        _connect_devices()
    except RuntimeError as error:
        line = str(error).strip().partition('\n')[0]
        raise ValueError(
            f'--coordinator {coordinator}: process {process} of {processes} cannot connect '
            f'({line}); expected a free port on process 0, and the same --coordinator and '
            '--num-processes in all processes'
        ) from error
    wrong = None
    if jax.process_count() != processes:
        wrong = ValueError(
            f'--num-processes is {processes} in process {process} and {jax.process_count()} in '
            'process 0; expected the same number in all processes'
        )
    raise_on_all(wrong)


def prepare_signals() -> None:
    """Keeps JAX from installing a handler of SIGTERM, which would lose it, and sets ours."""
    jax.config.update('jax_enable_preemption_service', False)
    preemption.watch()


def _check_port(coordinator: str, port: int) -> None:
    """Raises ValueError if process 0 cannot listen at the port, where JAX may abort."""
    try:
        socket.create_server(('', port)).close()
    except OSError as error:
        raise ValueError(
            f'--coordinator {coordinator}: port {port} cannot be used ({error.strerror}); expected '
            'a free port on process 0'
        ) from error


def _wait_for_coordinator(host: str, port: int, timeout: int) -> None:
    """Waits until process 0 listens; ValueError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError:
            time.sleep(min(0.2, left))
    raise ValueError(
        f'--coordinator: no answer from {host}:{port} within {timeout} s; expected process 0 to '
        'listen there, started with the same --coordinator'
    )


def _connect_devices() -> None:
    """Runs a first collective over all devices.

    On CPU, devices connect in their first collective and wait for each other for only about 30 s:
    too short if one process still reads data or compiles.
    """
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ('all',), axis_types=(AxisType.Auto,))
    over_all = NamedSharding(mesh, PartitionSpec('all'))
    replicated = NamedSharding(mesh, PartitionSpec())
    ones = jax.make_array_from_callback((count,), over_all, lambda index: np.ones(count)[index])
    total = jax.jit(jnp.sum, out_shardings=replicated)(ones)
    multihost_utils.process_allgather(np.float32(total))


@functools.cache
def _wait_at_barrier() -> Callable[..., None]:
    """Orbax's barrier, (key=, timeout_ms=), which is no collective: it may wait for hours."""
    import orbax.checkpoint as ocp  # slow to import, and not needed by a single process

    return ocp.multihost.get_barrier_sync_fn()


def is_primary() -> bool:
    """Whether this is process 0, which alone writes metrics, cards and figures."""
    return jax.process_index() == 0


def primary_first(make: Callable[[], Any]) -> Any:
    """Calls `make` in the primary process, then in all others.

    The others find the files that the primary process wrote to a shared disk.

    Args:
        make: a function without arguments.

    Returns:
        What `make` returned in this process.

    Raises:
        ValueError: in the other processes, if `make` failed in the primary one.
    """
    made: list[Any] = []
    run_on_primary(lambda: made.append(make()))
    return made[0] if made else make()


def run_on_primary(make: Callable[[], Any]) -> Any:
    """Calls `make` in the primary process and broadcasts the result.

    Args:
        make: a function without arguments that returns a JSON value.

    Returns:
        The result, in every process.

    Raises:
        Exception: what `make` raised, in the primary process.
        ValueError: with the same message, in all others.
    """
    made, error = None, None
    if is_primary():
        try:
            made = make()
        except Exception as raised:  # the others would wait forever
            error = raised
    raise_on_all(error)
    return all_gather_objects(made)[0]


def raise_on_all(error: Exception | None) -> None:
    """Raises an error in every process if at least one has an error; every process calls it.

    Args:
        error: the error of this process, or None.

    Raises:
        Exception: `error`, where it is not None.
        ValueError: with the message of the first process that has an error, in all others.
    """
    barrier('errors')  # an all-gather on CPU does not wait for long
    texts = all_gather_objects('' if error is None else str(error) or type(error).__name__)
    if error:
        raise error
    for text in texts:
        if text:
            raise ValueError(text)


def all_gather_objects(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in the order of their indices."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(text)))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def all_reduce_max(number: int) -> int:
    """Returns the largest of an int32 number over all processes."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def all_reduce_sum(numbers: np.ndarray) -> np.ndarray:
    """Returns the sum of an array over all processes."""
    if jax.process_count() == 1:
        return numbers
    return np.sum(multihost_utils.process_allgather(numbers), axis=0)


def barrier(name: str) -> None:
    """Waits until every process reaches this barrier, for up to a day."""
    if jax.process_count() > 1:
        key = f'clip_jax {name} {next(_BARRIERS)}'
        _wait_at_barrier()(key=key, timeout_ms=1000 * DAY)


def exit_if_peer_lost(error: Exception) -> None:
    """Exits at once with one line if the error is JAX's and there are several processes.

    Most likely another process is gone, and a normal exit would wait for it.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        line = str(error).strip().partition('\n')[0]
        print(
            f'clip-jax: process {jax.process_index()} cannot continue, most likely because another '
            f'process exited ({line}); the same command resumes the run',
            file=sys.stderr,
        )
        exit_now(1)


def exit_together(code: int) -> None:
    """Exits after an error.

    If all processes fail within EXIT_TIMEOUT, each exits normally. Otherwise this one exits at
    once: a normal exit would wait for the others for minutes.
    """
    if jax.distributed.is_initialized():
        try:
            _wait_at_barrier()(key='clip_jax exit', timeout_ms=1000 * EXIT_TIMEOUT)
        except RuntimeError:
            exit_now(code)
    sys.exit(code)


def exit_now(code: int) -> None:
    """Exits at once, without cleaning up."""
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
