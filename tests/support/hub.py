"""A local server that speaks the protocol of the Hugging Face hub, and serves plain files."""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest
from huggingface_hub import constants

NONE: Mapping[str, str] = MappingProxyType({})
LFS_FROM = 4096  # bytes from which a file is kept apart and named by its SHA-256


@dataclasses.dataclass
class Repository:
    """A repository: its files at each commit, and what commits its names stand for."""

    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    token: str = ''  # who may read it; '': all

    def commit(self, files: dict[str, bytes], name: str = 'main') -> str:
        """Stores files as a new commit; returns its hash."""
        content = repr(sorted((k, hashlib.sha256(v).hexdigest()) for k, v in files.items()))
        sha = hashlib.sha1(f'{content}{len(self.commits)}'.encode()).hexdigest()
        self.commits[sha] = files
        self.names[name] = sha
        return sha


@dataclasses.dataclass
class Hub:
    """The repositories of a server, what it is to do wrong, and what was asked of it.

    Attributes:
        url: its address.
        repositories: by OWNER/NAME, or datasets/OWNER/NAME.
        files: plain files by path, as '/weights.pt'.
        moved: new names of repositories by their old ones.
        cut: by the end of a path, how many times a transfer is cut in its middle.
        busy: by the end of a path, how many times it answers 429.
        damaged: ends of paths whose content has a flipped bit.
        asked: method and path of each request.
        sent: bytes of files that were sent.
        uploaded: large files by their SHA-256.
        token: who may upload; '': all.
    """

    url: str = ''
    repositories: dict[str, Repository] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    moved: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: dict[str, int] = dataclasses.field(default_factory=dict)
    busy: dict[str, int] = dataclasses.field(default_factory=dict)
    damaged: list[str] = dataclasses.field(default_factory=list)
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sent: int = 0
    uploaded: dict[str, bytes] = dataclasses.field(default_factory=dict)
    token: str = ''

    def add(self, name: str, files: dict[str, bytes], *, token: str = '') -> str:
        """Adds a repository, or a commit to it; returns the hash of the commit."""
        repository = self.repositories.setdefault(name, Repository())
        repository.token = token
        return repository.commit({'.gitattributes': b'*.bin filter=lfs', **files})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition('?')[0])
        self.hub.asked.append((self.command, path))
        if self._due(self.hub.busy, path):
            return self._answer(429, b'', {'Retry-After': '0'})
        if path in self.hub.files:
            content = self.hub.files[path]
            return self._content(path, content, {'ETag': f'"{hashlib.md5(content).hexdigest()}"'})
        if found := re.fullmatch(r'/cdn/(\w+)/(.*)', path):
            blobs = (
                f
                for r in self.hub.repositories.values()
                for c in r.commits.values()
                for f in c.values()
            )
            content = next(x for x in blobs if hashlib.sha256(x).hexdigest() == found[1])
            return self._content(found[2], content, {'ETag': f'"{found[1]}"'})
        api = r'/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?'
        if found := re.fullmatch(api, path):
            return self._api(found[1], found[2], found[3] or 'main', found[4] or '')
        if found := re.fullmatch(r'/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.*)', path):
            return self._resolve(found[1], found[2], found[3])
        return self._answer(404, b'')

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers['Content-Length']))
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, b'')

    def do_POST(self) -> None:
        path = urllib.parse.unquote(self.path.partition('?')[0])
        self.hub.asked.append(('POST', path))
        body = self._body()
        if path == '/api/validate-yaml':
            return self._json({'errors': [], 'warnings': []})
        if self.hub.token and self.headers.get('Authorization') != f'Bearer {self.hub.token}':
            return self._answer(401, b'')
        if path == '/api/repos/create':
            asked = json.loads(body)
            name = f'{asked["organization"]}/{asked["name"]}'
            if name not in self.hub.repositories:
                self.hub.add(name, {}, token=self.hub.token if asked.get('private') else '')
            return self._json({'url': f'{self.hub.url}/{name}', 'name': name})
        if found := re.fullmatch(r'/api/models/(.+)/preupload/main', path):
            modes = [
                {
                    'path': x['path'],
                    'uploadMode': 'lfs' if x['size'] >= LFS_FROM else 'regular',
                    'shouldIgnore': False,
                }
                for x in json.loads(body)['files']
            ]
            return self._json({'files': modes})
        if path.endswith('.git/info/lfs/objects/batch'):
            objects = [
                {**x, 'actions': {'upload': {'href': f'{self.hub.url}/put/{x["oid"]}'}}}
                for x in json.loads(body)['objects']
            ]
            return self._json({'transfer': 'basic', 'objects': objects})
        found = re.fullmatch(r'/api/models/(.+)/commit/main', path)
        assert found, path
        return self._committed(found[1], body)

    def _body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def _committed(self, name: str, body: bytes) -> None:
        """Adds the files of a commit to those of the one before."""
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.names['main']])
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.hub.uploaded[value['oid']]
        sha = repository.commit(files)
        url = f'{self.hub.url}/{name}/commit/{sha}'
        self._json({'success': True, 'commitOid': sha, 'commitUrl': url, 'hookOutput': ''})

    def _due(self, counts: dict[str, int], path: str) -> bool:
        for end in counts:
            if path.endswith(end) and counts[end]:
                counts[end] -= 1
                return True
        return False

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision; None if an answer was sent instead."""
        if name in self.hub.moved:
            place = self.path.replace(name, self.hub.moved[name])
            return self._answer(307, b'', {'Location': place})
        repository = self.hub.repositories.get(name)
        sent = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if repository is None or (repository.token and sent != repository.token):
            # The hub does not say which of the two it is.
            return self._error(401 if not sent else 404, 'RepoNotFound', 'Repository Not Found')
        sha = repository.names.get(revision, revision)
        if sha not in repository.commits:
            return self._error(404, 'RevisionNotFound', 'Revision Not Found')
        return sha, repository.commits[sha]

    def _api(self, name: str, kind: str, revision: str, folder: str) -> None:
        if (found := self._commit(name, revision)) is None:
            return None
        sha, files = found
        if kind == 'tree':
            whole = 'recursive=true' in self.path.lower()
            entries = _tree(files, f'{folder}/' if folder else '', whole=whole)
            if not entries:
                return self._error(404, 'EntryNotFound', 'Entry Not Found')
            return self._json(entries)
        siblings = [{'rfilename': path} for path in files]
        return self._json({'id': name, 'sha': sha, 'private': False, 'siblings': siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self._commit(name, revision)) is None:
            return None
        sha, files = found
        headers = {'X-Repo-Commit': sha}
        if path not in files:
            return self._error(404, 'EntryNotFound', 'Entry Not Found', headers)
        content = files[path]
        entry = _entry(path, content)
        if 'lfs' not in entry:
            return self._content(path, content, headers | {'ETag': f'"{entry["oid"]}"'})
        digest = entry['lfs']['oid']
        headers |= {'X-Linked-Etag': f'"{digest}"', 'X-Linked-Size': str(len(content))}
        # Another host, as the hub's storage has: redirects within a host are followed unseen.
        storage = self.hub.url.replace('localhost', '127.0.0.1')
        return self._answer(302, b'', headers | {'Location': f'{storage}/cdn/{digest}/{path}'})

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        """Sends a file, or the range of it that was asked for."""
        if any(path.endswith(end) for end in self.hub.damaged):
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        start = int(asked[1]) if asked else 0
        end = int(asked[2]) + 1 if asked and asked[2] else len(content)
        part = content[start:end]
        headers = {'Accept-Ranges': 'bytes', **headers}
        if asked:
            headers['Content-Range'] = f'bytes {start}-{end - 1}/{len(content)}'
        cut = self.command == 'GET' and self._due(self.hub.cut, path)
        self.hub.sent += len(part) if self.command == 'GET' else 0
        self._answer(206 if asked else 200, part, headers, cut=cut)

    def _error(self, status: int, code: str, text: str, headers: Mapping[str, str] = NONE) -> None:
        self._answer(status, b'', {'X-Error-Code': code, 'X-Error-Message': text, **headers})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {'Content-Type': 'application/json'})

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] = NONE,
        *,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def _entry(path: str, content: bytes) -> dict:
    """A file in the list of a commit."""
    oid = hashlib.sha1(f'blob {len(content)}\0'.encode() + content).hexdigest()
    entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': oid}
    if len(content) >= LFS_FROM:
        digest = hashlib.sha256(content).hexdigest()
        entry['lfs'] = {'oid': digest, 'size': len(content), 'pointerSize': 130}
    return entry


def _tree(files: dict[str, bytes], folder: str, *, whole: bool) -> list[dict]:
    """The entries of a folder, or of all folders in it."""
    inside = {path: x for path, x in files.items() if path.startswith(folder)}
    entries = []
    for path, content in inside.items():
        rest = path.removeprefix(folder)
        if whole or '/' not in rest:
            entries.append(_entry(path, content))
        parents = [folder + rest[: m.start()] for m in re.finditer('/', rest)]
        entries += [
            {'type': 'directory', 'path': x, 'size': 0, 'oid': 40 * '0'}
            for x in (parents if whole else parents[:1])
        ]
    return [*{entry['path']: entry for entry in entries}.values()]


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """An empty hub, which huggingface_hub is pointed to, with an empty cache."""
    hub = Hub()
    handler = type('Handler', (_Handler,), {'hub': hub})
    server = http.server.ThreadingHTTPServer(('localhost', 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f'http://localhost:{server.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hf'))
    monkeypatch.setattr(
        constants,
        'HUGGINGFACE_CO_URL_TEMPLATE',
        f'{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}',
    )
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
    monkeypatch.delenv('HF_TOKEN', raising=False)
    yield hub
    server.shutdown()
    server.server_close()
