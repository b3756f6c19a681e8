"""Tables that map our parameter names to another layout's, applied in both directions."""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import ml_dtypes
import numpy as np

from clip_jax.runtime.foreign_arrays import Array
from clip_jax.runtime.messages import first_few

SHOWN = 20  # names of one kind of problem in an error
_FLOATS = [np.dtype(x) for x in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)]
_OF_DTYPE = f'of a dtype other than {", ".join(map(str, _FLOATS))}'


class Rule(NamedTuple):
    """How arrays are converted: `read` from theirs to ours, `write` from ours to theirs.

    Several arrays are passed as several arguments and returned as a sequence.
    """

    read: Callable[..., Any]
    write: Callable[..., Any]


class Row(NamedTuple):
    """One row of a table: our parameters ('params/image/…'), theirs, and the rule between them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    rule: Rule


def row(ours: str | Iterable[str], theirs: str | Iterable[str], rule: Rule) -> Row:
    """Makes a table row; a single name is a sequence of one."""

    def names(x: str | Iterable[str]) -> tuple[str, ...]:
        return (x,) if isinstance(x, str) else tuple(x)

    return Row(names(ours), names(theirs), rule)


SAME = Rule(lambda x: x, lambda x: x)
LINEAR = Rule(np.transpose, np.transpose)  # (out, in) <-> (in, out)
CONV = Rule(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
# (out, size * size * in) <-> (size, size, in, out); `read` below gives it its four axes.
PATCHES = Rule(np.transpose, lambda x: x.reshape(-1, x.shape[-1]).T)
ONE = Rule(lambda x: x.reshape(()), lambda x: x.reshape(1))  # (1) <-> ()
LEADING_ONE = Rule(lambda x: x[0], lambda x: x[None])  # (1, ...) <-> (...)
LEADING_ONES = Rule(lambda x: x[0, 0], lambda x: x[None, None])  # (1, 1, ...) <-> (...)
# Query, key and value: three arrays <-> one, (..., h, k) x 3 <-> (..., 3, h, k)
STACKED = Rule(lambda *xs: np.stack(xs, axis=-3), lambda x: np.moveaxis(x, -3, 0))


def into_heads(*sizes: int) -> Rule:
    """Splits the output axis: (out, in) <-> (in, *sizes, rest), a bias (out) <-> (*sizes, rest).

    `into_heads(heads)` is one projection, `into_heads(3, heads)` fused query, key and value.
    """

    def read(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(*x.T.shape[:-1], *sizes, -1)

    def write(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[: -len(sizes) - 1], -1).T

    return Rule(read, write)


def out_of_heads(heads: int) -> Rule:
    """Splits the input axis into heads: (out, in) <-> (heads, in / heads, out)."""
    return Rule(lambda x: x.T.reshape(heads, -1, len(x)), lambda x: x.reshape(-1, x.shape[-1]).T)


def joined(rule: Rule, parts: int) -> Rule:
    """Maps several of their arrays to one of ours: concatenated on axis 0, then `rule`."""
    return Rule(lambda *xs: rule.read(np.concatenate(xs)), lambda x: np.split(rule.write(x), parts))


def divided(rule: Rule, parts: int) -> Rule:
    """Maps one of their arrays to several of ours: split on axis 0, then `rule` for each."""
    return Rule(
        lambda x: [rule.read(part) for part in np.split(x, parts)],
        lambda *xs: np.concatenate([rule.write(x) for x in xs]),
    )


def norm(ours: str, theirs: str) -> Iterator[Row]:
    """Yields the rows of a torch LayerNorm or BatchNorm."""
    yield row(f'{ours}/scale', f'{theirs}.weight', SAME)
    yield row(f'{ours}/bias', f'{theirs}.bias', SAME)


def dense(ours: str, theirs: str, rule: Rule = LINEAR, *, bias: bool = True) -> Iterator[Row]:
    """Yields the rows of a torch linear layer or convolution; `rule` converts the weight."""
    yield row(f'{ours}/kernel', f'{theirs}.weight', rule)
    if bias:
        yield row(f'{ours}/bias', f'{theirs}.bias', SAME)


def mlp(ours: str, theirs: str, first: str, second: str) -> Iterator[Row]:
    """Yields the rows of the two linear layers of an MLP."""
    yield from dense(f'{ours}/in', f'{theirs}.{first}')
    yield from dense(f'{ours}/out', f'{theirs}.{second}')


def read(
    rows: Iterable[Row],
    theirs: Mapping[str, Array],
    like: Mapping[str, Any],
    *,
    what: str,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """Converts their arrays to our variables.

    Args:
        rows: the table.
        theirs: their arrays by name.
        like: our variables with shapes as leaves.
        what: the file; error messages start with it.
        ignored: whether an array of that name is no parameter.

    Returns:
        Our variables, nested, float32.

    Raises:
        ValueError: arrays are missing, unknown, of a wrong shape, not floating point or not finite;
            the message names them all.
    """
    rows, shapes = list(rows), flat(like)
    _check(rows, theirs, shapes, what, ignored)
    variables, wrong = {}, []
    for ours, names, rule in rows:
        arrays = _several(rule.read(*(theirs[n].read() for n in names)), ours)
        for path, array in zip(ours, arrays, strict=True):
            with np.errstate(over='ignore', invalid='ignore'):  # found and named below
                array = np.asarray(array, np.float32, order='C')
            if bad := _not_finite(array):
                wrong.append(f'{bad:,} of {array.size:,} in {" + ".join(names)}')
            variables[path] = array.reshape(shapes[path].shape)
    if wrong:
        raise ValueError(
            f'{what}: numbers that are NaN or infinite in float32: {_listed(wrong)}. The file is '
            'damaged (copy or download it again), or its training diverged'
        )
    return flax.traverse_util.unflatten_dict(variables, sep='/')


def write(rows: Iterable[Row], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts our variables to their arrays, float32, by name."""
    arrays, rows, ours = {}, list(rows), flat(variables)
    _check_rows(rows, ours)
    for paths, names, rule in rows:
        written = _several(rule.write(*(np.asarray(ours[p], np.float32) for p in paths)), names)
        arrays |= {n: np.asarray(x, order='C') for n, x in zip(names, written, strict=True)}
    return arrays


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a nested tree to {'params/image/…': leaf}."""
    return flax.traverse_util.flatten_dict(tree, sep='/')


def _not_finite(array: np.ndarray) -> int:
    """Returns how many numbers are NaN or infinite."""
    # Minimum and maximum need no second array.
    if not array.size or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return 0
    return int(array.size - np.isfinite(array).sum())


def _several(x: Any, names: tuple[str, ...]) -> Any:
    return (x,) if len(names) == 1 else x


def _check_rows(rows: list[Row], ours: Mapping[str, Any]) -> None:
    """Asserts that a table covers every parameter once; otherwise the layout module has a bug."""
    covered = collections.Counter(path for r in rows for path in r.ours)
    wrong = set(covered) ^ set(ours) | {path for path, times in covered.items() if times > 1}
    if wrong:
        raise AssertionError(f'a table does not cover exactly the parameters: {sorted(wrong)}')


def _check(
    rows: list[Row],
    theirs: Mapping[str, Array],
    ours: Mapping[str, Any],
    what: str,
    ignored: Callable[[str], bool],
) -> None:
    _check_rows(rows, ours)
    expected = _expected(rows, theirs, ours, what)
    found = {name for name in theirs if name in expected or not ignored(name)}
    common = sorted(found & set(expected))
    problems = {
        'missing': sorted(set(expected) - found),
        'unknown': sorted(found - set(expected)),
        'of a wrong shape': [
            f'{n} is {theirs[n].shape}, expected {expected[n]}'
            for n in common
            if not _same_shape(theirs[n].shape, expected[n])
        ],
        _OF_DTYPE: [f'{n} is {theirs[n].dtype}' for n in common if not _is_float(theirs[n].dtype)],
    }
    if any(problems.values()):
        parts = [
            f'{len(names)} {kind}: {_listed(names)}' for kind, names in problems.items() if names
        ]
        raise ValueError(
            f'{what}: the parameters do not fit the architecture. {". ".join(parts)}. '
            + _to_do(problems)
        )


def _to_do(problems: Mapping[str, list[str]]) -> str:
    if problems[_OF_DTYPE]:
        return (
            'Quantized weights are not read: save the model again in bfloat16 or float32 with the '
            'program that quantized it, or get the original weights'
        )
    return 'Check that the weights and the config belong together'


def _is_float(dtype: np.dtype | str) -> bool:
    return not isinstance(dtype, str) and dtype.newbyteorder('=') in _FLOATS


def _expected(
    rows: list[Row], theirs: Mapping[str, Array], ours: Mapping[str, Any], what: str
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that arrays must have, by name."""
    total = sum(math.prod(array.shape) for array in theirs.values())
    expected = {}
    for paths, names, rule in rows:
        shapes = [ours[p].shape for p in paths]
        if sum(map(math.prod, shapes)) > total:
            raise ValueError(
                f'{what}: the config says {shapes[0]} for {" + ".join(names)}, more numbers than '
                f'the {total:,} of the whole file. Check that the weights and the config belong '
                'together'
            )
        # Rules run on blank arrays, no larger than the file.
        blank = rule.write(*(np.empty(shape, np.bool_) for shape in shapes))
        expected |= {n: x.shape for n, x in zip(names, _several(blank, names), strict=True)}
    return expected


def _same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return tuple(a) == tuple(b) or (set(a) | set(b) <= {1})  # a scalar: () or (1)


def _listed(names: list[str]) -> str:
    return first_few(names, SHOWN)
