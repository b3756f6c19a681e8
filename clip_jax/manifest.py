"""The checksums of a folder's files: a list written last, by which damage is found before anything
is believed.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

NAME = 'manifest.json'
SMALL = 1 << 20  # bytes; a sample holds all files up to this size
SAMPLE = 8  # and one of so many of the larger ones
BLOCK = 1 << 22  # bytes read at a time
THREADS = 4  # hashing lets go of Python's lock


def write(folder: epath.Path) -> None:
    """Writes `manifest.json`: size and SHA-256 of every file in the folder, and of the list itself.

    The folder's files have to be written to their end before.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        names = _files(folder)
        hashes = pool.map(lambda name: _sha256(folder / name), names)
        files = {
            name: {'bytes': size, 'sha256': digest}
            for name, (size, digest) in zip(names, hashes, strict=True)
        }
    content = {'files': files, 'sha256': _digest(files)}
    (folder / NAME).write_text(json.dumps(content, indent=1) + '\n')


def troubles(
    folder: epath.Path,
    *,
    contents: str = 'all',
    only: tuple[str, ...] = (),
    part: tuple[int, int] = (0, 1),
) -> list[str]:
    """Says what in a folder is not as its manifest has it: [] if it is whole.

    `contents`: 'all' reads every file, 'sampled' the small ones and one of SAMPLE large ones,
    'none' compares names and sizes alone. `only` leaves out the sub-folders that are not named. Of
    several processes each reads its `part`, (which, how many). OSError if a file is there and
    cannot be read.
    """
    if not folder.is_dir():
        return ['a file, where a folder was expected']
    try:
        content = json.loads((folder / NAME).read_text())
        files = {name: (x['bytes'], x['sha256']) for name, x in content['files'].items()}
        right = content['sha256'] == _digest(content['files'])
    except FileNotFoundError:
        return [f'{NAME} is missing' if any(folder.iterdir()) else 'an empty folder']
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        return [f'{NAME} is damaged']

    def within(name: str) -> bool:
        return not only or '/' not in name or name.partition('/')[0] in only

    there = {name for name in _files(folder) if within(name)}
    wanted = {name for name in files if within(name)}
    found = [f'{name} is missing' for name in sorted(wanted - there)]
    found += [f'{name} does not belong there' for name in sorted(there - wanted)]
    sound = []
    for name in sorted(wanted & there):
        size = folder.joinpath(name).stat().length
        if size == files[name][0]:
            sound.append(name)
        else:
            found.append(f'{name} has {size:,} bytes, expected {files[name][0]:,}')
    chosen = [name for name in sound if contents == 'all' or _in_sample(files[name], contents)]
    which, count = part
    with ThreadPoolExecutor(THREADS) as pool:
        mine = chosen[which::count]
        for name, (_, digest) in zip(
            mine, pool.map(lambda name: _sha256(folder / name), mine), strict=True
        ):
            if digest != files[name][1]:
                found.append(f'the content of {name} is not what was written')
    return found


def size(folder: epath.Path) -> int:
    """Bytes of all files that lie in a folder."""
    return sum(folder.joinpath(name).stat().length for name in _files(folder))


def _in_sample(file: tuple[int, str], contents: str) -> bool:
    size, digest = file
    return contents == 'sampled' and (size <= SMALL or int(digest[:8], 16) % SAMPLE == 0)


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: epath.Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _files(folder: epath.Path, prefix: str = '') -> list[str]:
    """The names of all files in a folder and below, except its manifest, sorted."""
    names: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + path.name
        if path.is_dir():
            names += _files(path, f'{name}/')
        elif name != NAME:
            names.append(name)
    return names
