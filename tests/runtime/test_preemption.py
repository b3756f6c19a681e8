"""Signals and notices of the machine are heard, and only as long as someone listens."""

import contextlib
import http.server
import os
import signal
import threading
import time

import pytest

from clip_jax.runtime import preemption


@contextlib.contextmanager
def listening(alone=True, graceful=True):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.closing(preemption.StopSignals(alone=alone)) as heard:
        heard.open()
        heard.graceful = graceful
        yield heard
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_the_first_ctrl_c_asks_and_the_second_interrupts(capfd):
    with listening() as heard:
        send(signal.SIGINT)
        assert heard.stop == preemption.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert 'Ctrl-C: saving after this step; once more' in capfd.readouterr().err


def test_sigterm_asks_however_often(capfd):
    with listening() as heard:
        for _ in range(3):
            send(signal.SIGTERM)
        assert heard.stop == preemption.SIGTERM
        send(signal.SIGINT)
        assert heard.stop == preemption.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_before_there_is_anything_to_save_both_end_at_once():
    with listening(graceful=False), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with listening(graceful=False), pytest.raises(SystemExit) as ended:
        send(signal.SIGTERM)
    assert ended.value.code == 0
    # One of several has to wait for the others.
    with listening(alone=False, graceful=False) as heard:
        send(signal.SIGTERM)
        assert heard.stop == preemption.SIGTERM


class Machine(http.server.BaseHTTPRequestHandler):
    """Google's metadata server: answers at once, or when a value has changed."""

    values: dict[str, str] = {}

    def do_GET(self):
        assert self.headers['Metadata-Flavor'] == 'Google'
        path, _, query = self.path.partition('?')
        key = path.removeprefix('/computeMetadata/v1/instance/')
        options = dict(x.split('=') for x in query.split('&') if x)
        while options.get('last_etag') == (value := self.values[key]):
            time.sleep(0.01)
        self.send_response(200)
        self.send_header('ETag', value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked has ended
            self.wfile.write(value.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def machine(monkeypatch):
    """The values of a metadata server that a test may change."""
    Machine.values = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}
    server = http.server.ThreadingHTTPServer(('localhost', 0), Machine)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('GCE_METADATA_HOST', f'localhost:{server.server_port}')
    monkeypatch.setenv('http_proxy', 'http://localhost:9')  # nobody is there
    monkeypatch.setenv('no_proxy', '')
    yield Machine.values
    Machine.values |= dict.fromkeys(Machine.values, 'over')
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ('key', 'harmless', 'value'),
    [
        ('preempted', 'FALSE ', 'TRUE'),
        ('maintenance-event', 'MIGRATE_ON_HOST_MAINTENANCE', 'TERMINATE_ON_HOST_MAINTENANCE'),
    ],
)
def test_a_notice_of_the_machine_is_as_sigterm(machine, capfd, key, harmless, value):
    with listening() as heard:
        machine[key] = harmless
        time.sleep(0.3)
        assert heard.stop == 0
        machine[key] = value
        end = time.monotonic() + 10
        while not heard.stop and time.monotonic() < end:
            time.sleep(0.01)
        assert heard.stop == preemption.SIGTERM
    assert f'this machine is about to go ({key}: {value})' in capfd.readouterr().err


def test_other_machines_are_not_asked(monkeypatch):
    monkeypatch.delenv('GCE_METADATA_HOST', raising=False)
    assert not preemption.on_google_cloud()
