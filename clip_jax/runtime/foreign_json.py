"""JSON that others wrote: size, nesting and types are checked, and an error is one line.

A schema is one of:

* a type: `str`, `bool`, `int`, `float` (any finite number), `dict`, `list`, or `None` for null;
* a tuple of schemas, one of which must fit;
* a list of one schema, for a list of such values;
* a dict of names and schemas, for an object: a name may be missing, and others may be there;
* a dict of the key `ANY` alone, for an object whose values are all alike.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from clip_jax.runtime.messages import shown

MOST_BYTES = 1 << 28  # the largest published tokenizer.json has 40 MB
MOST_DEPTH = 100
ANY = ''  # stands for every name of an object
_LARGEST = 2**53  # of integers: what every program reads exactly
_NAMES: dict[Any, str] = {
    str: 'a text',
    bool: 'true or false',
    int: 'an integer',
    float: 'a number',
}
_NAMES |= {dict: 'an object', list: 'a list', None: 'null', type(None): 'null'}


def read(path: str | os.PathLike, schema: Any = dict) -> Any:
    """Reads a JSON file.

    Args:
        path: the file, UTF-8.
        schema: what it must hold.

    Returns:
        The content.

    Raises:
        ValueError: it is no JSON, too large, nested too deeply, or does not fit the schema.
        OSError: the file cannot be read.
    """
    file = epath.Path(path)
    if file.stat().length > MOST_BYTES:
        raise ValueError(
            f'{path}: has {file.stat().length:,} bytes; at most {MOST_BYTES:,} of JSON are read'
        )
    return parse(file.read_bytes(), str(path), schema)


def parse(text: str | bytes, what: str, schema: Any = dict) -> Any:
    """Parses JSON; see `read`.

    Args:
        text: the JSON, UTF-8 if it is bytes.
        what: where it comes from; error messages start with it.
        schema: what it must hold.
    """
    try:
        content = json.loads(text.decode() if isinstance(text, bytes) else text)
        _check_depth(content)
    except RecursionError as error:
        raise ValueError(f'{what}: lists or objects are nested too deeply') from error
    except ValueError as error:
        raise ValueError(f'{what}: not valid JSON: {error}') from error
    return check(content, schema, what)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MOST_DEPTH):
        inner = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in inner for y in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return
    raise RecursionError


def check(value: Any, schema: Any, what: str) -> Any:
    """Returns a value that fits a schema; else a ValueError that says what was found."""
    if isinstance(schema, tuple):
        if any(_fits(value, choice) for choice in schema):
            return value
    elif isinstance(schema, list) and isinstance(value, list):
        for i, item in enumerate(value):
            check(item, schema[0], f'{what}[{i}]')
        return value
    elif isinstance(schema, Mapping) and isinstance(value, dict):
        for name, item in value.items():
            inner = schema.get(name, schema.get(ANY, object))
            check(item, inner, f'{what}: {name}')
        return value
    elif _is(value, schema):
        return value
    raise ValueError(f'{what} is {_shown(value)}; expected {_described(schema)}')


def _fits(value: Any, schema: Any) -> bool:
    try:
        check(value, schema, '')
    except ValueError:
        return False
    return True


def _is(value: Any, kind: Any) -> bool:
    """Returns whether a value is of a type of the schema; true and false are no numbers."""
    if kind is object:
        return True
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= _LARGEST**16 and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) <= _LARGEST
    return value is None if kind is None else isinstance(kind, type) and type(value) is kind


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f'{_NAMES[type(value)]} of {len(value)}'
    return shown(value)


def _described(schema: Any) -> str:
    if isinstance(schema, tuple):
        return ' or '.join(map(_described, schema))
    if isinstance(schema, list):
        return f'a list of values, each {_described(schema[0])}'
    return 'an object' if isinstance(schema, Mapping) else _NAMES.get(schema, str(schema))
