"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685).

Beside a matrix W [in, out] of the model there are A [in, rank] and B [rank, out], and the model
computes with W + (alpha / rank) A B. A begins at random and B at zero, so that a run begins with
the model that it adapts. Adapters are parameters like others, under `lora` and then the path of
their matrix: lora/image/transformer/block_0/mlp/in/kernel/a.
"""

import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from clip_jax import lookup
from clip_jax.runtime import foreign_json
from clip_jax.runtime.messages import first_few
from clip_jax.sharding import LogicalAxes
from clip_jax.step import rules
from clip_jax.step.rules import LORA

# Queries, keys, values and output of attention, also of the pools of SigLIP and ResNets.
TARGETS = r'(.*/)?attention(_pool)?/(qkv|query|key|value|out)/kernel'
OPTIONS = {'rank': int, 'alpha': float, 'targets': str}
# The `lora` of a card: the model that has the adapters, its path from the run directory, '' where
# there is none, and its fingerprint; and the options of each tower that has adapters.
CARD = {'base': str, 'relative': str, 'fingerprint': str, 'image': OPTIONS, 'text': OPTIONS}
Shape = tuple[int, ...]


class Matrix(NamedTuple):
    """The axes of a kernel as those of a matrix; queries, keys and values are a stack of three."""

    inputs: Shape
    stack: Shape
    outputs: Shape
    rank: int  # of its adapter

    @property
    def adapter(self) -> dict[str, Shape]:
        """The shapes of A and B."""
        inputs, stack, outputs, rank = self
        return {'a': (*inputs, *stack, rank), 'b': (rank, *stack, *outputs)}


class Adapters(NamedTuple):
    """The adapters of a model.

    Attributes:
        matrices: by path, those that have adapters.
        towers: what was asked of each tower that has some: rank, alpha and targets.
    """

    matrices: dict[str, Matrix]
    towers: dict[str, dict[str, Any]]

    def abstract(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the tree of adapters."""
        return self._tree(lambda path, shape: jax.ShapeDtypeStruct(shape, jnp.float32))

    def zeros(self) -> dict[str, Any]:
        """Returns adapters that add nothing."""
        return self._tree(lambda path, shape: jnp.zeros(shape))

    def init(self, seed: int) -> dict[str, Any]:
        """Returns new adapters: A normal with the variance 1 / in, B zero.

        The numbers of a matrix depend on the seed and on its path alone.
        """
        key = jax.random.key(seed)

        def one(path: str, shape: Shape) -> jax.Array:
            of, _, name = path.rpartition('/')
            if name == 'b':
                return jnp.zeros(shape)
            own = jax.random.fold_in(key, zlib.crc32(of.encode()))
            return jax.random.normal(own, shape) * math.prod(self.matrices[of].inputs) ** -0.5

        return self._tree(one)

    def _tree(self, make: Callable[[str, Shape], Any]) -> dict[str, Any]:
        flat = {
            f'{path}/{name}': make(f'{path}/{name}', shape)
            for path, matrix in self.matrices.items()
            for name, shape in matrix.adapter.items()
        }
        return traverse_util.unflatten_dict(flat, sep='/')


def resolve(
    config: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any], axes: LogicalAxes
) -> Adapters | None:
    """Decides which matrices have adapters.

    Args:
        config: `lora` of a config or of a card: for each tower `rank`, 0 for no adapters; `alpha`,
            0 for the rank; and `targets`, a regular expression for whole paths below the tower,
            None for TARGETS.
        params: the parameters of the model, or their shapes.
        axes: names their axes, see models/clip.logical_axes.

    Returns:
        The adapters; None if there are none.

    Raises:
        ValueError: a value is impossible, or targets match nothing, no matrix, or a matrix that is
            smaller than the rank.
    """
    matrices, towers = {}, {}
    for tower in rules.TOWERS:
        options = _checked(f'lora.{tower}', config.get(tower, {'rank': 0}))
        if options is None:
            continue
        known = rules.paths(params[tower])
        matched = [name for name in known if re.fullmatch(options['targets'], name)]
        if not matched:
            shape = {x: value.shape for x, value in known.items()}
            usual = [x for x in known if _matrix(f'{tower}/{x}', shape[x], axes, 1)]
            raise ValueError(
                f'lora.{tower}: targets {options["targets"]!r} matches no parameter; paths below '
                f'the tower are such as {first_few(rules.shown(usual), 6)}'
            )
        for name in matched:
            path = f'{tower}/{name}'
            matrices[path] = _checked_matrix(path, known[name].shape, axes, options['rank'])
        towers[tower] = options
    return Adapters(matrices, towers) if towers else None


def _checked(what: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a tower with their defaults, None if it has no adapters."""
    for key in given:
        lookup.check(key, OPTIONS, what=what)
    rank, alpha, targets = given['rank'], given.get('alpha', 0), given.get('targets')
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ValueError(f'{what}: rank is {rank!r}; expected an integer, 0 for no adapters')
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not 0 <= alpha < math.inf:
        raise ValueError(f'{what}: alpha is {alpha!r}; expected a number, 0 for that of the rank')
    if not rank:
        if alpha or targets is not None:
            raise ValueError(
                f'{what}: alpha or targets is set and rank is 0, so that there are no adapters; '
                'set rank too, such as 8'
            )
        return None
    targets = TARGETS if targets is None else targets
    try:
        re.compile(targets)
    except (re.error, TypeError) as error:
        raise ValueError(f'{what}: targets {targets!r} is no regular expression: {error}') from None
    return {'rank': rank, 'alpha': float(alpha or rank), 'targets': targets}


def _checked_matrix(path: str, shape: Shape, axes: LogicalAxes, rank: int) -> Matrix:
    matrix = _matrix(path, shape, axes, rank)
    tower, _, below = path.partition('/')
    if matrix is None:
        raise ValueError(
            f'lora.{tower}: targets matches {below}, of shape {[*shape]}, which is no matrix of a '
            'dense layer; expected kernels of attention or of an MLP'
        )
    sides = math.prod(matrix.inputs), math.prod(matrix.outputs)
    if rank > min(sides):
        raise ValueError(
            f'lora.{tower}: rank is {rank}, and {below} is a matrix of {sides[0]} x {sides[1]}; '
            f'expected at most {min(sides)}'
        )
    return matrix


def _matrix(path: str, shape: Shape, axes: LogicalAxes, rank: int) -> Matrix | None:
    """The axes of a kernel as those of a matrix, None for other parameters."""
    if len(shape) < 2 or not path.endswith('/kernel'):
        return None
    ends = _sides(axes(path, len(shape)))
    return ends and Matrix(shape[: ends[0]], shape[ends[0] : ends[1]], shape[ends[1] :], rank)


def _sides(names: Sequence[str | None]) -> tuple[int, int] | None:
    """Where, among the axes of a kernel, the inputs end and where the outputs begin."""
    # Heads and their features are one side.
    if len([name for name in names if name not in ('qkv', 'head_dim')]) != 2:
        return None
    inputs = 2 if names[0] == 'heads' else 1
    return inputs, inputs + (names[inputs] == 'qkv')


def logical_axes(axes: LogicalAxes) -> LogicalAxes:
    """Adds adapters to the function that names the axes of a model's parameters: they have the axes
    of their matrix, and the rank is not sharded.
    """

    def of(path: str, ndim: int) -> Sequence[str | None]:
        found = re.search(f'(?:^|/){LORA}/((?:image|text)/.*)/([ab])$', path)
        if not found:
            return axes(path, ndim)
        names = [*axes(found[1], 2)]
        ends = _sides(names)
        assert ends, path
        return [*names[: ends[1]], None] if found[2] == 'a' else [None, *names[ends[0] :]]

    return of


def scales(towers: Mapping[str, Any]) -> dict[str, float]:
    """Returns the factor alpha / rank of each tower that has adapters.

    Args:
        towers: as in Adapters, or the `lora` of a card.
    """
    return {x: towers[x]['alpha'] / towers[x]['rank'] for x in rules.TOWERS if x in towers}


def merge(params: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, Any]:
    """Returns parameters with the adapters added to their matrices, in float32.

    Args:
        params: those of the model, and adapters as `lora`; without these they are returned as they
            are.
        scales: by tower, the factor of A B.
    """
    merged = {name: value for name, value in params.items() if name != LORA}
    for tower, adapters in params.get(LORA, {}).items():
        with jax.named_scope(LORA):
            merged[tower] = _merged(merged[tower], adapters, scales[tower])
    return merged


def _merged(params: Any, adapters: Mapping[str, Any], scale: float) -> Any:
    if not isinstance(params, Mapping):
        return params + scale * _product(adapters['a'], adapters['b'], params.ndim)
    return {
        name: _merged(value, adapters[name], scale) if name in adapters else value
        for name, value in params.items()
    }


def _product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
    """A B in float32 for a kernel of `ndim` axes: a [*in, *stack, r], b [r, *stack, *out]."""
    letters, stack = 'abcdefgh'[:ndim], a.ndim + b.ndim - 2 - ndim
    ends = a.ndim - 1 - stack, a.ndim - 1
    form = f'{letters[: ends[1]]}r,r{letters[ends[0] :]}->{letters}'
    return jnp.einsum(form, a, b, precision=jax.lax.Precision.HIGHEST)


def merged(variables: Mapping[str, Any], towers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the model of which some matrices have adapters; see `merge`.

    Args:
        variables: `params` and the buffers.
        towers: as for `scales`.
    """
    return {**variables, 'params': merge(variables['params'], scales(towers))}


def of_card(found: Any, what: str) -> dict[str, Any] | None:
    """Checks the `lora` of a card, None if it has none; ValueError if it is not one of ours."""
    if found is None:
        return None
    missing = [key for key in [*CARD][:3] if key not in foreign_json.check(found, CARD, what)]
    if missing or not {*found} & {*rules.TOWERS}:
        missing = missing or rules.TOWERS
        raise ValueError(f'{what} lacks {missing[0]}; expected that of a run with adapters')
    return found


def bases(of_run: Mapping[str, Any], workdir: Any) -> list[str]:
    """Returns where the base of a run's adapters may be: where it was, and there if it was moved
    together with the run.

    Args:
        of_run: the `lora` of the run's card.
        workdir: the run directory.
    """
    moved = of_run['relative']
    return [of_run['base'], *([os.path.normpath(os.path.join(workdir, moved))] if moved else [])]
