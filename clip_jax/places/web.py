"""Files at a web address, in a cache of our own: resumed where a transfer was cut, and verified.

Proxies are those of the environment (`https_proxy`, `no_proxy`).
"""

import base64
import hashlib
import http.client
import json
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import filelock
from absl import logging

from clip_jax.places import cache
from clip_jax.places.place import Place
from clip_jax.runtime import atomic
from clip_jax.runtime.messages import brief
from clip_jax.runtime.progress import Progress

FOLDER = 'web'  # in the user's cache
_TRIES = 5
_WAIT = 1.0  # seconds before the first retry, doubled for each further one
_LONGEST = 60.0  # seconds
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_NONE: Mapping[str, str] = MappingProxyType({})
_BUSY = (408, 429, 500, 502, 503, 504)  # statuses that may pass
_SHA256 = re.compile(r'(?<=/)[0-9a-f]{64}(?=/)')  # in the path, as OpenAI's addresses have it


def fetch(address: str) -> Place:
    """Downloads one file, unless the same version of it is cached.

    Args:
        address: https://…, with the name of a file at its end.

    Returns:
        The path in the cache, and the address.

    Raises:
        ValueError: there is no such file, the server cannot be reached and the file is not cached,
            or what came has a wrong size or checksum.
    """
    name = pathlib.PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    if not name:
        raise ValueError(f'{address}: names no file; expected https://…/FILE')
    folder = cache.folder(FOLDER, address)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / 'lock'):
            return Place(_cached(address, folder, name), address)
    except OSError as error:
        raise ValueError(f'{address}: cannot be stored in {folder} ({brief(error)})') from error


def _cached(address: str, folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file, downloaded if the server has another version than the cache."""
    path, note = folder / name, folder / 'version.json'
    known = json.loads(note.read_text()) if note.exists() and path.exists() else None
    try:
        version = _version(address)
    except ValueError as error:
        if known is None:
            raise
        logging.warning('%s; using the file of the cache', error)
        return path
    if version != known:
        partial = folder / 'partial'
        _download(address, partial, folder / 'partial.json', version)
        _check(address, partial, version)
        partial.replace(path)
        atomic.write_json(note, version)
    return path


def _version(address: str) -> dict[str, Any]:
    """What the server says of a file: its ETag, size and checksums."""
    with _opened(address, method='HEAD') as answer:
        headers = answer.headers
    size = headers.get('Content-Length')
    return {
        'etag': headers.get('ETag'),
        'modified': headers.get('Last-Modified'),
        'size': int(size) if size else None,
        'md5': _md5(headers),
    }


def _md5(headers: Mapping[str, str]) -> str | None:
    """The MD5 that Google's storage names: `x-goog-hash: crc32c=…,md5=…` in base 64."""
    found = re.search(r'md5=([\w+/=]+)', headers.get('x-goog-hash') or '')
    return base64.b64decode(found[1]).hex() if found else None


def _download(
    address: str, partial: pathlib.Path, note: pathlib.Path, version: dict[str, Any]
) -> None:
    """Downloads to `partial`; continues it where it is of the same version."""
    if not (note.exists() and partial.exists() and json.loads(note.read_text()) == version):
        partial.unlink(missing_ok=True)
        atomic.write_json(note, version)
    for attempt in range(_TRIES):
        if _received(address, partial, version):
            return
        time.sleep(min(_LONGEST, _WAIT * 2**attempt))
    raise ValueError(
        f'{address}: the transfer was cut {_TRIES} times; the same command continues at '
        f'{partial.stat().st_size:,} bytes'
    )


def _received(address: str, partial: pathlib.Path, version: dict[str, Any]) -> bool:
    """Receives what is missing; False if the transfer was cut."""
    have = partial.stat().st_size if partial.exists() else 0
    if have == version['size']:
        return True
    headers = {'Range': f'bytes={have}-'} if have else {}
    if have and version['etag']:
        headers['If-Range'] = version['etag']
    with _opened(address, headers=headers) as answer:
        mode, done = ('ab', have) if answer.status == 206 else ('wb', 0)
        name = address.rpartition('/')[2]
        with (
            partial.open(mode) as file,
            Progress(name, version['size'], done=done, unit='bytes') as progress,
        ):
            try:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    progress.advance(len(chunk))
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                return False
    return version['size'] is None or partial.stat().st_size >= version['size']


def _check(address: str, path: pathlib.Path, version: dict[str, Any]) -> None:
    """Deletes the file and raises a ValueError if size or checksum are wrong."""
    size, in_path = path.stat().st_size, _SHA256.search(address)
    wrong = ''
    if version['size'] not in (None, size):
        wrong = f'has {size:,} bytes, expected {version["size"]:,}'
    for kind, expected in ('sha256', in_path and in_path[0]), ('md5', version['md5']):
        if expected and not wrong:
            with path.open('rb') as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != expected:
                wrong = f'has the {kind} {found}, expected {expected}'
    if wrong:
        path.unlink()
        raise ValueError(f'{address}: the file that came {wrong}; it was deleted')


def _opened(address: str, *, method: str = 'GET', headers: Mapping[str, str] = _NONE) -> Any:
    """Opens an address; retries while a server is busy."""
    request = urllib.request.Request(address, method=method, headers=dict(headers))
    for attempt in range(_TRIES):
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code not in _BUSY or attempt == _TRIES - 1:
                raise ValueError(f'{address}: the server answered {error.code}') from None
            after = error.headers.get('Retry-After', '')
            wait = float(after) if after.isdecimal() else _WAIT * 2**attempt
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, 'reason', error)
            raise ValueError(f'{address}: cannot be reached ({reason})') from None
        time.sleep(min(_LONGEST, wait))
    raise AssertionError('not reached')
