"""Checkpoints on object storage (gs://, s3://) through fsspec, in a cache of our own."""

import json
import pathlib
import posixpath
from typing import Any

import filelock
from absl import logging

from clip_jax.places import cache, choice
from clip_jax.places.place import Place
from clip_jax.runtime import atomic, object_storage
from clip_jax.runtime.messages import brief
from clip_jax.runtime.progress import Progress

PROTOCOLS = ('gs://', 's3://')
NATIVE = 'gs://'  # where a run of our own is read without a copy
FOLDER = 'buckets'  # in the user's cache
_MOST_DEPTH, _MOST_FOLDERS = 5, 20  # of folders that are searched for those of Orbax
# What storage says of the content of an object; the first that it has is its version.
_VERSIONS = ('ETag', 'etag', 'md5Hash', 'LastModified', 'updated', 'mtime', 'created')


def fetch(address: str) -> Place | None:
    """Downloads the files that a checkpoint needs, unless the same versions of them are cached.

    Args:
        address: gs://… or s3://…: a folder, or a file of weights.

    Returns:
        The path in the cache, and the address; None for a run of our own that is read where it is.

    Raises:
        ValueError: there is nothing at the address, it cannot be reached and is not cached, or it
            changed while it was downloaded.
    """
    address = address.rstrip('/')
    folder = cache.folder(FOLDER, address)
    fs, root = object_storage.filesystem(address)
    try:
        found = _listed(fs, root)
    except FileNotFoundError:
        raise ValueError(f'{address}: there is nothing at this address') from None
    except Exception as error:  # drivers raise many types
        if not (folder / 'complete.json').exists():
            raise ValueError(f'{address}: cannot be reached ({brief(error)})') from error
        logging.warning('%s: cannot be reached (%s); using the cache', address, brief(error))
        return Place(folder / json.loads((folder / 'complete.json').read_text()), address)
    if _is_ours(found) and address.startswith(NATIVE):
        return None
    with _locked(folder):
        inside = _download(address, fs, found, folder)
        atomic.write_json(folder / 'complete.json', inside)
    return Place(folder / inside, address)


def _listed(fs: Any, root: str) -> tuple[str, str, dict[str, Any]]:
    """The folder of an address, the path in it, and what is known of each file, by its name."""
    if fs.isfile(root):
        parent = posixpath.dirname(root)
        return parent, posixpath.basename(root), _inside(fs, parent, deep=False)
    found = _inside(fs, root, deep=False)
    if any(name.startswith('checkpoints/') for name in found):
        found = _inside(fs, root, deep=True)
    if not found:
        raise FileNotFoundError(root)
    for folder in _orbax(fs, root, found):
        entries = _inside(fs, f'{root}/{folder}', deep=True)
        found |= {posixpath.join(folder, name): entry for name, entry in entries.items()}
    return root, '', found


def _orbax(fs: Any, root: str, found: dict[str, Any]) -> list[str]:
    """The folders of Orbax in a folder, of the newest step where steps are numbered."""
    level = {} if any(map(choice.is_weights, found)) else {'': found}
    for _ in range(_MOST_DEPTH):
        if items := [folder for folder, names in level.items() if any(map(_is_orbax, names))]:
            return items
        pairs = [(folder, name) for folder, names in level.items() for name in names]
        below = [posixpath.join(folder, name[:-1]) for folder, name in pairs if name[-1] == '/']
        steps = [x for x in below if posixpath.basename(x).isdecimal()]
        if steps:
            below = [max(steps, key=lambda x: int(posixpath.basename(x)))]
        level = {x: _inside(fs, f'{root}/{x}', deep=False) for x in below[:_MOST_FOLDERS]}
    return []


def _is_orbax(name: str) -> bool:
    return name in choice.ORBAX or name.startswith(choice.BIG_VISION)


def _inside(fs: Any, folder: str, *, deep: bool) -> dict[str, Any]:
    """What storage says of the files in a folder; of folders in it only the names, with a slash."""
    entries = fs.find(folder, detail=True).values() if deep else fs.ls(folder, detail=True)
    found = {}
    for entry in entries:
        name = posixpath.relpath(entry['name'], folder)
        found[name if entry['type'] == 'file' else f'{name}/'] = entry
    return found


def _is_ours(found: tuple[str, str, dict[str, Any]]) -> bool:
    names = found[2]
    return any(map(choice.OURS.fullmatch, names)) or 'manifest.json' in names


def _locked(folder: pathlib.Path) -> filelock.BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / 'lock')


def _download(
    address: str, fs: Any, found: tuple[str, str, dict[str, Any]], folder: pathlib.Path
) -> str:
    """Downloads what is needed and not cached; returns the path of the checkpoint in `folder`."""
    place, path, entries = found
    names = [name for name in entries if not name.endswith('/')]
    note = folder / 'versions.json'
    known = json.loads(note.read_text()) if note.exists() else {}
    for choose in (
        lambda: choice.settings(path, names),
        lambda: choice.weights(address, folder, path, names),
    ):
        for name in choose():
            version = _version(entries[name])
            if known.get(name) != version or not (folder / name).exists():
                _copied(address, fs, f'{place}/{name}', folder / name, entries[name])
                known[name] = version
                atomic.write_json(note, known)
    return path


def _version(entry: dict[str, Any]) -> list[str]:
    return [str(entry.get('size')), *(str(entry[x]) for x in _VERSIONS if x in entry)][:2]


def _copied(address: str, fs: Any, source: str, target: pathlib.Path, entry: Any) -> None:
    """Copies one object; a ValueError if its size is not the listed one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + atomic.PARTIAL)
    name = posixpath.basename(source)
    try:
        with (
            fs.open(source, 'rb') as remote,
            partial.open('wb') as file,
            Progress(name, entry.get('size'), unit='bytes') as progress,
        ):
            while chunk := remote.read(1 << 22):
                file.write(chunk)
                progress.advance(len(chunk))
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f'{address}: {name} could not be copied ({brief(error)})') from error
    size = partial.stat().st_size
    if entry.get('size') not in (None, size):
        partial.unlink()
        raise ValueError(
            f'{address}: {name} came with {size:,} bytes, expected {entry["size"]:,}; the same '
            'command copies it again'
        )
    partial.replace(target)
