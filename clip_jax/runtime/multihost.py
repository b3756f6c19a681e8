"""The processes of a run, one a host: how they find each other, and what the first does for all."""

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
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

DAY = 24 * 60 * 60 * 1000  # milliseconds
_BARRIERS = itertools.count()  # a name serves once; all processes come to all barriers in order
SHORT = 5.0  # seconds for what takes none where all is well
MESSAGE = 4096  # bytes, more than any of the words that hosts exchange before they are connected


def initialize(coordinator: str, processes: int, process: int, *, timeout: int) -> None:
    """Connects this process with the others; the first listens at `coordinator`, HOST:PORT.

    ValueError if within `timeout` seconds not all are there, or if they do not agree on how many
    they are. JAX itself would end the process without a word that helps.
    """
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit():
        raise ValueError(f'--coordinator is {coordinator!r}; expected HOST:PORT of process 0')
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f'--process-id is {process}, --num-processes {processes}; expected 0 to {processes - 1}'
        )
    deadline = time.monotonic() + timeout
    if process == 0:
        _gather(int(port), processes, deadline)
    else:
        _report(host, int(port), processes, process, deadline)
    left = max(1, int(deadline - time.monotonic()))
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=left)
    _connect_devices()


def _connect_devices() -> None:
    """Lets all devices hear of each other while every process is here.

    On CPU they connect at their first collective, and only wait half a minute for each other: too
    short if one of them still draws data or compiles.
    """
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ('all',), axis_types=(AxisType.Auto,))
    over_all, whole = (
        NamedSharding(mesh, PartitionSpec('all')),
        NamedSharding(mesh, PartitionSpec()),
    )
    ones = jax.make_array_from_callback((count,), over_all, lambda place: np.ones(count)[place])
    total = jax.jit(jnp.sum, out_shardings=whole)(ones)
    multihost_utils.process_allgather(np.float32(total))


def _gather(port: int, processes: int, deadline: float) -> None:
    """Waits for the other processes, compares what they believe, and lets them go on."""
    found: dict[int, socket.socket] = {}
    try:
        server = socket.create_server(('', port))
    except OSError as error:
        raise ValueError(f'--coordinator: port {port} cannot be used: {error.strerror}') from None
    with server:
        try:
            while len(found) < processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = server.accept()
                said = _heard(connection)
                if said is None:
                    continue
                process, count = said
                found[process] = connection
                if count != processes:
                    raise ValueError(
                        f'--num-processes is {processes} in process 0 and {count} in process '
                        f'{process}; expected the same number in all'
                    )
        except TimeoutError:
            missing = sorted({*range(1, processes)} - {*found})
            error = ValueError(
                f'--num-processes is {processes}, and of these {len(missing)} did not come to port '
                f'{port} in time: process {", ".join(map(str, missing[:8]))}'
            )
            _tell(found, str(error))
            raise error from None
        except ValueError as error:
            _tell(found, str(error))
            raise
        _tell(found, '')


def _heard(connection: socket.socket) -> tuple[int, int] | None:
    """Which process this is and how many it believes there are; None of a stranger, which scanners
    of ports and health checks are.
    """
    connection.settimeout(SHORT)
    try:
        said = json.loads(connection.recv(MESSAGE))
        return said['process'], said['processes']
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        return None


def _tell(connections: dict[int, socket.socket], error: str) -> None:
    for connection in connections.values():
        with connection:
            connection.sendall(json.dumps({'error': error}).encode())


def _report(host: str, port: int, processes: int, process: int, deadline: float) -> None:
    """Tells process 0 who this is, and waits until all are there."""
    said = {'processes': processes, 'process': process}
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ValueError(
                f'--coordinator: nobody answers at {host}:{port}; expected process 0 to have been '
                'started there, with the same --coordinator'
            )
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(said).encode())
                connection.settimeout(left + 5)  # so that the reason comes from process 0
                answer = connection.recv(MESSAGE)
        except OSError:
            answer = b''
        if answer:
            if error := json.loads(answer)['error']:
                raise ValueError(error)
            return
        time.sleep(0.2)


def is_primary() -> bool:
    """Whether this process writes what is written once: metrics, cards, figures."""
    return jax.process_index() == 0


def primary_first(make: Callable[[], Any]) -> Any:
    """Calls `make` in every process; the first is done before the others begin, so that they find
    what it has put on the disk that they share.
    """
    made: list[Any] = []
    run_on_primary(lambda: made.append(make()))
    return made[0] if made else make()


def run_on_primary(make: Callable[[], Any]) -> Any:
    """Returns to every process what `make`, called by the first alone, returns: anything that JSON
    can hold. What it raises there is raised in all, in the others as a ValueError.
    """
    made, error = None, None
    if is_primary():
        try:
            made = make()
        except Exception as raised:  # the others would wait for ever
            error = raised
    raise_on_all(error)
    return all_gather_objects(made)[0]


def raise_on_all(error: Exception | None) -> None:
    """Raises in every process the error of the first that has one; all come here."""
    barrier('errors')  # a gather alone would not wait for long
    texts = all_gather_objects('' if error is None else str(error) or type(error).__name__)
    if error:
        raise error
    for text in texts:
        if text:
            raise ValueError(text)


def all_gather_objects(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order: anything that JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(text)))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def all_reduce_max(number: int) -> int:
    """The largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def all_reduce_sum(numbers: np.ndarray) -> np.ndarray:
    """Sums an array over all processes."""
    if jax.process_count() == 1:
        return numbers
    return np.sum(multihost_utils.process_allgather(numbers), axis=0)


def barrier(what: str) -> None:
    """Returns when every process has come here, however long that takes."""
    if jax.process_count() > 1:
        # Not a collective: on CPU, these wait for half a minute only.
        client = distributed.global_state.client
        client.wait_at_barrier(f'clip_jax {what} {next(_BARRIERS)}', timeout_in_ms=DAY)


def exit_if_peer_lost(error: Exception) -> None:
    """Ends this process at once, with a line, if the error is JAX's and there are others: likely
    one of them is gone, and an orderly end would wait for it.
    """
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        line = str(error).strip().partition('\n')[0]
        print(
            f'clip-jax: process {jax.process_index()} cannot go on, most likely since another one '
            f'ended ({line}); the same command goes on where it was',
            file=sys.stderr,
        )
        exit_now(1)


def exit_together(code: int) -> None:
    """Ends this process after an error: in order if all have come here, with one of their own; at
    once if others go on, or are gone, since an orderly end would wait for them for minutes.
    """
    if client := distributed.global_state.client:
        try:
            client.wait_at_barrier('clip_jax end', timeout_in_ms=int(1000 * SHORT))
        except jax.errors.JaxRuntimeError:
            exit_now(code)
    sys.exit(code)


def exit_now(code: int) -> None:
    """Ends this process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
