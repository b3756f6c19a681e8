"""The checksums of a folder's files: a list written last, by which damage is found before anything
is believed.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISDIR
from typing import Any, NamedTuple

from etils import epath

from clip_jax.runtime import atomic

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
        names = [*_files(folder)]
        hashes = pool.map(lambda name: _sha256(folder / name), names)
        files = {
            name: {'bytes': size, 'sha256': digest}
            for name, (size, digest) in zip(names, hashes, strict=True)
        }
    content = {'files': files, 'sha256': _digest(files)}
    (folder / NAME).write_text(json.dumps(content, indent=1) + '\n')


def verify(
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
    files, right = {}, False
    try:
        content = json.loads((folder / NAME).read_text())
        files = {name: (x['bytes'], x['sha256']) for name, x in content['files'].items()}
        right = content['sha256'] == _digest(content['files'])
    except FileNotFoundError:
        return [f'{NAME} is missing' if any(folder.iterdir()) else 'an empty folder']
    except NotADirectoryError:
        return ['a file, where a folder was expected']
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError):
        pass
    if not right:
        return [f'{NAME} is damaged']

    def within(name: str) -> bool:
        return not only or '/' not in name or name.partition('/')[0] in only

    there = {name: size for name, size in _files(folder).items() if within(name)}
    wanted = {name for name in files if within(name)}
    found = [f'{name} is missing' for name in sorted(wanted - there.keys())]
    found += [f'{name} does not belong there' for name in sorted(there.keys() - wanted)]
    sound = []
    for name in sorted(wanted & there.keys()):
        if there[name] == files[name][0]:
            sound.append(name)
        else:
            found.append(f'{name} has {there[name]:,} bytes, expected {files[name][0]:,}')
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
    return sum(_files(folder).values())


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


def _files(folder: epath.Path, prefix: str = '') -> dict[str, int]:
    """All files in a folder and below, except its manifest, by name, sorted, with their bytes."""
    names: dict[str, int] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name, about = prefix + path.name, stat(path)
        if about.is_folder:
            names |= _files(path, f'{name}/')
        elif name != NAME:
            names[name] = about.bytes
    return names


class Stat(NamedTuple):
    """What is known of a file or folder without reading it."""

    is_folder: bool
    bytes: int
    written: float  # seconds since 1970


def stat(path: epath.Path) -> Stat:
    """Looks at a file or folder; OSError if that fails, where `is_dir` says that it is none."""
    if atomic.is_remote(path):
        found = path.stat()
        return Stat(found.is_directory, found.length, found.mtime)
    found = os.stat(path)  # epath's wants a name for the owner, whom containers may not know
    return Stat(S_ISDIR(found.st_mode), found.st_size, found.st_mtime)
