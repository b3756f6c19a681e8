"""Checkpoints at an address: what they need is downloaded into the user's cache, and verified.

`local` takes an address and returns a local path; each kind of address has a file here.
"""

import pathlib
from typing import NamedTuple


class Place(NamedTuple):
    """Where a checkpoint is.

    Attributes:
        path: the local file or folder.
        address: where it came from, with its revision if it has one.
    """

    path: pathlib.Path
    address: str


def is_address(path: str | pathlib.Path) -> bool:
    """Whether a path names a place from which `local` downloads."""
    return str(path).startswith(('hf://', 'https://', 'http://'))


def found(path: str | pathlib.Path) -> Place | None:
    """Returns the local path of an address or of a published name; None if `path` is neither.

    Raises:
        ValueError: as `local`; or the name is known, but clip_jax cannot load it.
    """
    if is_address(path):
        return local(str(path))
    if pathlib.Path(path).expanduser().exists():
        return None
    from clip_jax.places import names

    row = names.find(str(path))
    return local(names.address(row)) if row else None


def hint(path: str | pathlib.Path) -> str:
    """Returns what to say of a path that does not exist: published names that are similar."""
    from clip_jax.places import names

    close = names.near(str(path))
    return f'. Did you mean {", ".join(close)}?' if close else ''


def local(address: str) -> Place:
    """Downloads a checkpoint, unless it is cached already.

    Args:
        address: hf://OWNER/NAME[@REVISION][/PATH], or https://… of one file.

    Returns:
        The local path, and the address with the revision that was found.

    Raises:
        ValueError: there is nothing at the address, it cannot be reached, or what came is damaged.
    """
    if address.startswith('hf://'):
        from clip_jax.places import hub

        return hub.fetch(address)
    from clip_jax.places import web

    return web.fetch(address)
