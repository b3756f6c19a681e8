"""Repositories of the Hugging Face hub, through huggingface_hub and in its cache.

`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the proxies of the
environment have the meaning that huggingface_hub gives them.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import huggingface_hub
from huggingface_hub import RepoFile, errors
from huggingface_hub.utils import HfUri, parse_hf_uri

from clip_jax.places import choice
from clip_jax.places.place import Place
from clip_jax.runtime import hub_errors
from clip_jax.runtime.messages import brief, first_few

_CHUNK = 1 << 20


def fetch(address: str) -> Place:
    """Downloads the files of a repository that a checkpoint needs, and verifies their checksums.

    Args:
        address: hf://OWNER/NAME[@REVISION][/PATH]; PATH is a folder or a file of weights.

    Returns:
        The path in huggingface_hub's cache, and the address with the revision as a commit.

    Raises:
        ValueError: there is no such repository, revision or file, it is not accessible, the hub
            cannot be reached, or a file is damaged.
    """
    uri = _parsed(address)
    # Little more than the commit that the revision stands for, and the list of its files.
    root = pathlib.Path(_download(address, uri, uri.revision, ['.gitattributes']))
    commit, path = root.name, uri.path_in_repo.strip('/')
    tree = _tree(address, uri, commit)
    every = [*tree]
    for choose in choice.settings, functools.partial(choice.weights, address, root):
        if names := choose(path, every):
            _download(address, uri, commit, names)
            _verify(address, root, [tree[name] for name in names])
    return Place(root / path, f'hf://{uri.id}@{commit}/{path}'.rstrip('/'))


def repository(address: str) -> str:
    """Returns OWNER/NAME of an address that names a whole repository; ValueError for others."""
    uri = _parsed(address)
    if uri.path_in_repo or uri.revision:
        raise ValueError(f'{address}: expected a repository alone, hf://OWNER/NAME')
    return uri.id


def upload(folder: pathlib.Path, address: str, *, private: bool) -> str:
    """Uploads a folder as one commit; the repository is created if there is none.

    Args:
        folder: the files.
        address: hf://OWNER/NAME.
        private: whether a new repository is private.

    Returns:
        The address with the commit.

    Raises:
        ValueError: it is not allowed, or the hub cannot be reached.
    """
    uri, api = _parsed(address), huggingface_hub.HfApi(library_name='clip_jax')

    def send() -> str:
        api.create_repo(uri.id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=uri.id, folder_path=folder, commit_message='Upload by clip-jax push'
        )
        return done.oid

    return f'hf://{uri.id}@{hub_errors.explained(address, uri.id, None, send)}'


def _parsed(address: str) -> HfUri:
    try:
        uri = parse_hf_uri(address)
    except errors.HfUriError as error:
        raise ValueError(
            f'{address}: {brief(error)}; expected hf://OWNER/NAME[@REVISION][/PATH]'
        ) from None
    if uri.type != 'model':
        raise ValueError(f'{address}: is a {uri.type}; expected a model, hf://OWNER/NAME')
    return uri


def _download(address: str, uri: HfUri, revision: str | None, patterns: Sequence[str]) -> str:
    def download() -> str:
        return huggingface_hub.snapshot_download(
            uri.id, revision=revision, allow_patterns=[*patterns], library_name='clip_jax'
        )

    return hub_errors.explained(address, uri.id, uri.revision, download)


def _tree(address: str, uri: HfUri, commit: str) -> dict[str, RepoFile]:
    """The files of a repository by name, from the cache."""

    def read() -> list[RepoFile]:
        return huggingface_hub.get_cached_repo_tree(uri.id, revision=commit)

    files = hub_errors.explained(address, uri.id, uri.revision, read)
    return {file.path: file for file in files}


def _verify(address: str, folder: pathlib.Path, files: Iterable[RepoFile]) -> None:
    """Compares files with the checksums of the repository; a damaged one is deleted."""
    wrong = [file for file in files if not _is_right(folder / file.path, file)]
    for file in wrong:
        path = folder / file.path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if wrong:
        raise ValueError(
            f'{address}: {first_few([x.path for x in wrong])} came with a wrong checksum and was '
            'deleted from the cache; the same command downloads it again'
        )


def _is_right(path: pathlib.Path, file: RepoFile) -> bool:
    size = path.stat().st_size
    if file.lfs:
        digest, expected = hashlib.sha256(), file.lfs.sha256
    else:  # as Git names its objects
        digest, expected = hashlib.sha1(f'blob {size}\0'.encode()), file.blob_id
    with path.open('rb') as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == expected
