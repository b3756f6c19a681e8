"""A metadata server like that of Google Cloud's machines."""

import contextlib
import http.server
import threading
import time

import pytest


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
