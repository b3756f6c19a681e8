"""Files of TFDS data sets from elsewhere: they are read without importing what they name."""

import contextlib
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from clip_jax.runtime.messages import brief

INFO_FILE = 'dataset_info.json'
_FEATURES_FILE = 'features.json'
_FEATURES = 'tensorflow_datasets.core.features.'
# The keys under which TFDS stores the name of a class, now and before version 4.5.
_CLASS_KEYS = ('pythonClassName', 'python_class_name', 'type')


def builder(folder: epath.Path) -> Any:
    """Returns the builder of a prepared data set.

    ValueError if one of its files is missing or damaged, or names a feature that is neither one of
    TFDS nor of a module that is already imported.
    """
    import tensorflow_datasets as tfds

    features = folder / _FEATURES_FILE
    for name in _class_names(_json(features)):
        known = tfds.features.FeatureConnector._registered_features
        # TFDS would import the module, whatever it is.
        if '.' in name and name not in known and not name.startswith(_FEATURES):
            raise ValueError(
                f'{features}: names the feature {name!r}, which is not one of TFDS. If you trust '
                f'it, import {name.rpartition(".")[0]} before the data is opened.'
            )
    _json(folder / INFO_FILE)
    # Errors of damaged files have many types, those of protobuf among them. For an unknown dtype
    # TFDS asks for TensorFlow, in a paragraph on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            tfds.features.FeatureConnector.from_config(os.fspath(folder))
        except Exception as error:
            raise damaged(features, error) from error
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:
            raise damaged(folder / INFO_FILE, error) from error


def failed_call(error: RuntimeError) -> int:
    """Returns the errno of a failed system call of ArrayRecord, 0 if the error means damage.

    Its errors begin with the name of the call: 'pread() failed: Input/output error; reading ...'.
    """
    call = re.match(r'\w+\(\) failed: ([^;]*)', str(error))
    if not call:
        return 0
    return next((code for code in errno.errorcode if os.strerror(code) == call[1]), errno.EIO)


def _json(file: epath.Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f'{file}: does not exist. Prepare or copy the data set again.') from None
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from error


def damaged(file: epath.Path, error: Exception) -> ValueError:
    """Returns the error of a file or folder of a data set that TFDS cannot read."""
    reason = brief(error)
    return ValueError(
        f'{file}: cannot be read ({type(error).__name__}: {reason}). Prepare or copy the data set '
        'again.'
    )


def _class_names(tree: Any) -> Iterator[str]:
    """Yields the names of classes in features.json, also in JSON that is stored as a string."""
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from (value[k] for k in _CLASS_KEYS if isinstance(value.get(k), str))
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and value.lstrip()[:1] in ('{', '['):
            try:
                left.append(json.loads(value))
            except (ValueError, RecursionError):
                continue  # TFDS cannot read it either.
