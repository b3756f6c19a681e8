"""Which implementation of attention runs, and why."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax


class Choice(NamedTuple):
    """The implementation for some inputs, the reason if we chose it, and the queries' sizes."""

    implementation: str
    reason: str
    tokens: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        why = f' ({self.reason})' if self.reason else ''
        sizes = f'{self.tokens} tokens, {self.heads} heads of {self.head_dim}'
        return f'{self.implementation}{why} for {sizes}'


_recorded: list[list[Choice]] = []


def note(implementation: str, reason: str, query: jax.Array) -> None:
    """Tells of a choice for queries [B, L, heads, head_dim]; see `recorded`."""
    for record in _recorded:
        record.append(Choice(implementation, reason, *query.shape[1:]))


@contextlib.contextmanager
def recorded() -> Iterator[list[Choice]]:
    """Lists the choices that are made while programs are traced in the block."""
    found: list[Choice] = []
    _recorded.append(found)
    try:
        yield found
    finally:
        _recorded.pop()


def describe(model: Any, batch_size: int) -> str:
    """Says in one line what attention each tower of a model uses and why.

    Args:
        model: a models.clip.CLIP; it is traced on the mesh of `jax.set_mesh`, with one block, since
            all blocks are alike.
        batch_size: pairs that are embedded at once.

    Returns:
        For instance 'attention: image cudnn (on gpu) for 197 tokens, 12 heads of 64; text …'.
    """
    parts, key = [], jax.eval_shape(lambda: jax.random.key(0))
    for name, x in zip(('image', 'text'), model.example_inputs(batch_size), strict=True):
        encoder = getattr(model, name)
        if hasattr(encoder, 'depth'):
            encoder = encoder.clone(depth=1, parent=None)
        inputs = key, x
        variables = jax.eval_shape(encoder.init, *inputs)
        with recorded() as choices:
            jax.eval_shape(functools.partial(_apply, encoder), variables, *inputs)
        once = dict.fromkeys(map(str, choices))
        parts.append(f'{name} {", ".join(once) or "none"}')
    return f'attention: {"; ".join(parts)}'


def _apply(encoder: Any, variables: Any, key: jax.Array, x: jax.Array) -> Any:
    return encoder.apply(variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats'])
