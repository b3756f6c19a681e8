"""Addresses with '://' that fsspec supports."""

from typing import Any

from clip_jax.runtime import hub_errors
from clip_jax.runtime.messages import brief

# What to install if fsspec has no driver; the others are `fsspec[PROTOCOL]`.
_DRIVERS = {
    'gs': 'clipax[gcs]',
    'gcs': 'clipax[gcs]',
    's3': 'clipax[s3]',
    'https': 'fsspec[http]',
}


# The libraries whose errors are no OSError.
_HTTP = ('aiohttp', 'botocore', 'httpcore', 'httpcore2', 'httpx', 'httpx2')


class UnknownProtocol(ValueError):
    """An address of a kind that fsspec does not support."""


def filesystem(address: str) -> tuple[Any, str]:
    """Returns the file system of an address and the path in it.

    Raises:
        ValueError: fsspec has none; or there is no such repository of the Hugging Face hub, or it
            cannot be reached.
    """
    import fsspec

    protocol = address.partition('://')[0]
    # fsspec caches file systems per thread.
    try:
        found = fsspec.core.url_to_fs(address)
    except ImportError as error:
        driver = _DRIVERS.get(protocol, f'fsspec[{protocol}]')
        raise ValueError(
            f'{address}: {protocol}:// needs a driver that is not installed ({error}). Install it '
            f"with: pip install '{driver}'"
        ) from error
    except ValueError as error:
        raise UnknownProtocol(
            f'{address}: fsspec does not support {protocol}:// ({error}). Expected a path, or an '
            'address such as gs://BUCKET/PATH, s3://… or https://…'
        ) from error
    if protocol == 'hf':
        _check_repository(address, *found)
    return found


def _check_repository(address: str, fs: Any, path: str) -> None:
    """Raises a ValueError if there is no such repository; the file system asks once."""
    from huggingface_hub import errors
    from huggingface_hub.utils import parse_hf_uri

    try:
        uri = parse_hf_uri(f'hf://{path}')
    except errors.HfUriError as error:
        raise ValueError(
            f'{address}: {brief(error)}; expected hf://datasets/OWNER/NAME[@REVISION]/PATH'
        ) from None
    repository = uri.id if uri.type == 'model' else f'{uri.type}s/{uri.id}'

    def look() -> None:
        try:
            fs.resolve_path(path)
        except FileNotFoundError as error:
            raise error.__cause__ or error from None

    hub_errors.explained(address, repository, uri.revision, look)


def range_of(fs: Any, path: str, start: int, end: int) -> bytes:
    """Reads bytes of an object with one request.

    Drivers that are not asynchronous would read ahead, several megabytes for a small record.
    """
    options = {} if getattr(fs, 'async_impl', False) else {'cache_type': 'none'}
    return fs.cat_file(path, start=start, end=end, **options)


def as_oserror(error: Exception, path: str) -> Exception:
    """Returns an OSError that names the path for what HTTP libraries raise when the network fails,
    other errors as they are.
    """
    if isinstance(error, OSError):
        error.filename = error.filename or path
        return error
    if type(error).__module__.partition('.')[0] not in _HTTP:
        return error
    return ConnectionError(0, brief(error), path)
