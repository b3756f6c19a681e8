"""Addresses with '://' that fsspec supports."""

from typing import Any

# What to install if fsspec has no driver; the others are `fsspec[PROTOCOL]`.
_DRIVERS = {
    'gs': 'clipax[gcs]',
    'gcs': 'clipax[gcs]',
    's3': 'clipax[s3]',
    'https': 'fsspec[http]',
}


class UnknownProtocol(ValueError):
    """An address of a kind that fsspec does not support."""


def filesystem(address: str) -> tuple[Any, str]:
    """Returns the file system of an address and the path in it; ValueError if fsspec has none."""
    import fsspec

    protocol = address.partition('://')[0]
    # fsspec caches file systems per thread.
    try:
        return fsspec.core.url_to_fs(address)
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
