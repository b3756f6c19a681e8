"""From an address or a published name to a local path."""

import pathlib

from clip_jax.places import bucket, hub, names, naming, web
from clip_jax.places.place import Place

_places: dict[str, Place] = {}  # what `found` found last, by address or name


def is_address(path: str | pathlib.Path) -> bool:
    """Whether a path names a place from which `local` downloads."""
    return str(path).startswith(('hf://', 'https://', 'http://', *bucket.PROTOCOLS))


def found(path: str | pathlib.Path) -> Place | None:
    """Returns the local path of an address or of a published name; None if `path` is neither,
    or a run on gs:// that is read where it is.

    Raises:
        ValueError: as `local`; or the name is known, but clip_jax cannot load it.
    """
    if is_address(path):
        place = local(str(path))
    elif pathlib.Path(path).expanduser().exists():
        return None
    else:
        row = names.find(str(path))
        place = local(names.address(row)) if row else None
    if place:
        _places[str(path)] = place
    return place


def pinned(path: str | pathlib.Path) -> str | None:
    """Returns the address, with its revision, where `found` found a checkpoint last.

    Args:
        path: what names the checkpoint, with what may follow a name.

    Returns:
        The address, with what followed; None for what `found` did not find elsewhere.
    """
    alone, rest = naming.split(path)
    place = _places.get(alone)
    return f'{place.address}{rest}' if place else None


def hint(path: str | pathlib.Path) -> str:
    """Returns what to say of a path that does not exist: published names that are similar."""
    close = names.near(str(path))
    return f'. Did you mean {", ".join(close)}?' if close else ''


def local(address: str) -> Place | None:
    """Downloads a checkpoint, unless it is cached already.

    Args:
        address: hf://OWNER/NAME[@REVISION][/PATH], https://… of one file, or gs://… and s3://….

    Returns:
        The local path, and the address with the revision that was found; None for a run on gs://
        that is read where it is.

    Raises:
        ValueError: there is nothing at the address, it cannot be reached, or what came is damaged.
    """
    if address.startswith(bucket.PROTOCOLS):
        return bucket.fetch(address)
    if address.startswith('hf://'):
        return hub.fetch(address)
    return web.fetch(address)
