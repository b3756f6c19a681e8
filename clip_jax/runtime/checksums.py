"""Checksums of a folder: `manifest.json`, written last, lists size and SHA-256 of every file."""

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
SAMPLE = 8  # a sample holds one in this many larger files
BLOCK = 1 << 22  # bytes read at a time
THREADS = 4  # hashing releases the GIL


def write(folder: epath.Path) -> None:
    """Writes `manifest.json`: size and SHA-256 of every file, and the SHA-256 of the list itself.

    Args:
        folder: the folder; all of its files must be complete.
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
    """Compares a folder with its manifest.

    Args:
        folder: the folder.
        contents: 'all' reads every file, 'sampled' the small ones and one in SAMPLE large ones,
            'none' compares only names and sizes.
        only: sub-folders to verify; by default all.
        part: (index, number of processes): each process reads its part of the files.

    Returns:
        One line for each error: a missing, foreign or corrupt file. [] if the folder is valid.

    Raises:
        OSError: if an existing file cannot be read.
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IsADirectoryError):
        pass
    if not right:
        return [f'{NAME} is corrupt']

    def within(name: str) -> bool:
        return not only or '/' not in name or name.partition('/')[0] in only

    sizes = {name: size for name, size in _files(folder).items() if within(name)}
    wanted = {name for name in files if within(name)}
    errors = [f'{name} is missing' for name in sorted(wanted - sizes.keys())]
    errors += [f'{name} is not in {NAME}' for name in sorted(sizes.keys() - wanted)]
    complete = []
    for name in sorted(wanted & sizes.keys()):
        if sizes[name] == files[name][0]:
            complete.append(name)
        else:
            errors.append(f'{name} has {sizes[name]:,} bytes, expected {files[name][0]:,}')
    chosen = [name for name in complete if contents == 'all' or _in_sample(files[name], contents)]
    which, count = part
    with ThreadPoolExecutor(THREADS) as pool:
        mine = chosen[which::count]
        for name, (_, digest) in zip(
            mine, pool.map(lambda name: _sha256(folder / name), mine), strict=True
        ):
            if digest != files[name][1]:
                errors.append(f'the content of {name} does not match its checksum')
    return errors


def size(folder: epath.Path) -> int:
    """Returns the bytes of all files in a folder, without its manifest."""
    return sum(_files(folder).values())


def _in_sample(file: tuple[int, str], contents: str) -> bool:
    size, digest = file
    return contents == 'sampled' and (size <= SMALL or int(digest[:8], 16) % SAMPLE == 0)


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: epath.Path) -> tuple[int, str]:
    """Returns size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _files(folder: epath.Path, prefix: str = '') -> dict[str, int]:
    """Returns the size of every file in a folder and its sub-folders, without the manifest."""
    names: dict[str, int] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name, about = prefix + path.name, stat(path)
        if about.is_folder:
            names |= _files(path, f'{name}/')
        elif name != NAME:
            names[name] = about.bytes
    return names


class Stat(NamedTuple):
    """The status of a file or folder."""

    is_folder: bool
    bytes: int
    written: float  # seconds since 1970


def stat(path: epath.Path) -> Stat:
    """Returns the status of a file or folder; OSError if that fails, unlike `is_dir`, which is
    False then.
    """
    if atomic.is_remote(path):
        found = path.stat()
        return Stat(found.is_directory, found.length, found.mtime)
    found = os.stat(path)  # epath's fails if the owner has no name, as in containers
    return Stat(S_ISDIR(found.st_mode), found.st_size, found.st_mtime)
