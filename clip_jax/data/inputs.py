"""What callers give as images and texts: generators, Series and arrays of other libraries become
sequences that are read by index.
"""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

# What to call inside jit, by the name of the method that was called there.
INSIDE_JIT = {
    'encode_image': "images, method='encode_image') with normalized images, float [N, H, W, 3]",
    'encode_text': "tokens, method='encode_text') with tokens, int32 [N, L]",
}


def images(given: Any) -> Sequence[Any] | np.ndarray:
    """Returns images as a sequence.

    Args:
        given: one image (see `image`); a sequence, generator, Series or array of paths or images;
            or one array uint8 [N, H, W, 3].

    Returns:
        The images; one image is a sequence of one.

    Raises:
        ValueError: there is a tracer, or the images have no order.
    """
    check_concrete(given, 'encode_image')
    if isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike)):
        return [given]
    found = _sequence(given, 'images')
    return [found] if isinstance(found, np.ndarray) and found.ndim != 4 else found


def image(given: Any) -> Any:
    """Returns one image as `Preprocess` takes it: arrays of other libraries as NumPy's."""
    check_concrete(given, 'encode_image')
    if isinstance(given, (bytearray, memoryview)):
        return bytes(given)
    other = hasattr(given, '__array__') and not isinstance(given, (str, bytes, np.ndarray))
    return np.asarray(given) if other else given


def texts(given: Any) -> Sequence[str] | np.ndarray:
    """Returns texts as a sequence.

    Args:
        given: one text; a sequence, generator, Series or array of texts; or tokens, int [N, L].

    Returns:
        The texts, one as a sequence of one; or the tokens as a NumPy array.

    Raises:
        ValueError: there is a tracer, the texts have no order, or the tokens have a wrong shape.
    """
    check_concrete(given, 'encode_text')
    found = [given] if isinstance(given, str) else _sequence(given, 'texts')
    if not isinstance(found, np.ndarray):
        return found
    if found.dtype.kind not in 'iu':
        return found.tolist()
    if found.ndim != 2:
        raise ValueError(f'tokens have the shape {found.shape}; expected [N, L], a row for a text')
    return found


def names(given: Any) -> tuple[str, ...]:
    """Returns names of classes as a tuple; ValueError if they are not at least one str."""
    found = () if isinstance(given, str) else tuple(_sequence(given, 'labels'))
    if not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f'labels {given!r:.80}: expected a list of at least one name, each a str')
    return found


def check_concrete(value: Any, method: str) -> None:
    """Raises ValueError if a value is a tracer, as inside jit, and says what to call there."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f'{method}: found a tracer, as inside jit, grad or vmap; this method reads and '
            'prepares its input on the host. Call it outside and pass its result in, or call there '
            f'clip.model.apply(clip.variables, {INSIDE_JIT[method]}'
        )


def _sequence(given: Any, what: str) -> Sequence[Any] | np.ndarray:
    """A sequence as it is; an array, and what is no sequence, as an array or a list."""
    if isinstance(given, Sequence):
        return given
    if isinstance(given, (Mapping, Set)) or hasattr(given, 'columns'):
        raise ValueError(
            f'{what}: found a {type(given).__name__}; expected a list, such as '
            'list(mapping.values()), or one column of a table'
        )
    if hasattr(given, '__array__'):
        array = np.asarray(given)
        return array if array.dtype.kind in 'biufc' else array.tolist()
    return list(given) if isinstance(given, Iterable) else [given]
