"""An upper bound of cosine similarities that costs less than they do.

Of a unit vector a, the coordinates in an orthonormal basis Q [D, k] are kept, and the length of the
rest as one more number. By Cauchy-Schwarz

    a . b  <=  (Q'a) . (Q'b) + |a - QQ'a| |b - QQ'b|,

which is the product of two such sketches, of k + 1 numbers each. A pair whose bound is below a
threshold cannot reach it, so that no pair is lost; few others are left, and these are compared
exactly. Principal components leave the fewest, since most of the distance is in them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from clip_jax import sharding
from clip_jax.runtime import similarity

SIZES = (16, 32, 64, 128, 256)  # k, of which the least is taken that leaves few pairs
# Of the pairs of a sample that pass the bound, as many as are near, and this share of all, may be
# below the threshold: then to compare them exactly takes little of the time.
PASSING = 1e-6
SAMPLE = 4096  # rows that the basis is made of
CPU_TILE, TILE = 1024, 8192  # rows and columns of a tile of products


def basis(sample: np.ndarray, threshold: float) -> np.ndarray:
    """Chooses the basis of sketches.

    Args:
        sample: unit vectors [N, D] of the data.
        threshold: the cosine that matters.

    Returns:
        An orthonormal basis, float64 [D, k]; all D coordinates if fewer leave too many pairs.
    """
    rows = sample.astype(np.float64)
    centered = rows - rows.mean(axis=0)
    # In descending order of variance; eigenvectors of float64 are orthonormal to 1e-14.
    vectors = np.linalg.eigh(centered.T @ centered)[1][:, ::-1]
    far = np.tril(similarity.matrix(sample, sample) < threshold, -1)
    pairs = len(sample) * (len(sample) - 1) // 2
    near = pairs - np.count_nonzero(far)
    for size in SIZES:
        if size >= vectors.shape[1]:
            break
        short = sketch(sample, vectors[:, :size])
        passing = (short @ short.T >= threshold - slack(size + 1)) & far
        if np.count_nonzero(passing) <= near + PASSING * pairs:
            return np.ascontiguousarray(vectors[:, :size])
    return np.ascontiguousarray(vectors)


def sketch(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Returns the sketches, float32 [N, k + 1], of unit vectors [N, D] in a basis [D, k]."""
    rows = rows.astype(np.float64)
    short = rows @ basis
    rest = np.einsum('nd,nd->n', rows, rows) - np.einsum('nk,nk->n', short, short)
    # Not less than it is, whatever the rounding.
    rest = np.sqrt(np.maximum(rest, 0) + 1e-12)
    return np.concatenate([short, rest[:, None]], axis=1).astype(np.float32)


def slack(width: int, dtype: str = 'float32') -> float:
    """Returns how much less than the bound a product of sketches in a dtype may be.

    Each of the `width` products and sums of float32 errs by 2^-24 of numbers below 1; sketches in
    bfloat16 err by 2^-8 of their length, so that products err by 2^-7. Accumulation is in float32.
    """
    return (width + 8) * 2.0**-22 + (2.0**-7 + 2.0**-15 if dtype == 'bfloat16' else 0.0)


def tile(block_size: int, devices: Sequence[jax.Device]) -> int:
    """Returns how many rows and columns a device compares at a time."""
    most = CPU_TILE if devices[0].platform == 'cpu' else TILE
    return min(most, -(-block_size // len(devices)))


class Flags(NamedTuple):
    """Where bounds reach a threshold, by tiles of `tile` rows and columns.

    Attributes:
        rows: bool [row tiles, column tiles, tile], whether one in the row does.
        columns: bool [row tiles, column tiles, tile], whether one in the column does.
    """

    rows: jax.Array
    columns: jax.Array


class Comparison:
    """Compares blocks of sketches on the devices of this process, each with a share of the rows.

    Args:
        threshold: the cosine that matters, above 0.
        width: the numbers of a sketch.
        block_size: the most rows of a block.
    """

    def __init__(self, threshold: float, width: int, block_size: int):
        self.mesh = sharding.make_mesh(jax.local_devices())
        self.dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
        self.bar = np.float32(threshold - slack(width, self.dtype))
        self.tile = tile(block_size, jax.local_devices())

    def placed(self, sketches: np.ndarray, *, sharded: bool) -> jax.Array:
        """Puts a block [N, k + 1] onto the devices as tiles, padded with zeros, below any bar."""
        tiles = -(-len(sketches) // self.tile)
        tiles += -tiles % self.mesh.size if sharded else 0
        padded = np.pad(sketches, [(0, tiles * self.tile - len(sketches)), (0, 0)])
        tiled = padded.reshape(tiles, self.tile, -1).astype(jnp.dtype(self.dtype))
        place = sharding.over_batch if sharded else sharding.replicated
        return jax.device_put(tiled, place(self.mesh))

    def flags(self, rows: jax.Array, columns: jax.Array, *, diagonal: bool) -> Flags:
        """Compares two placed blocks, the rows sharded; returns before the devices have finished.

        With `diagonal` the blocks are the same, and only columns after the row count.
        """
        numbers = np.arange(len(rows), dtype=np.int32)
        numbers = jax.device_put(numbers, sharding.over_batch(self.mesh))
        return Flags(*_flags(self.mesh, diagonal)(rows, numbers, columns, self.bar))


@functools.cache
def _flags(mesh: jax.sharding.Mesh, diagonal: bool):
    over_rows = PartitionSpec(sharding.RULES['batch'])
    return jax.jit(
        jax.shard_map(
            functools.partial(_of_device, diagonal=diagonal),
            mesh=mesh,
            in_specs=(over_rows, over_rows, PartitionSpec(), PartitionSpec()),
            out_specs=(over_rows, over_rows),
            check_vma=False,
        )
    )


def _of_device(rows, numbers, columns, bar, *, diagonal: bool):
    """The flags of some row tiles [r, T, k + 1], whose numbers are [r], and all column tiles."""
    size = rows.shape[1]
    order = jnp.arange(size)

    def compared(row, number, column, other):
        products = jax.lax.dot_general(
            row, column, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        over = products >= bar
        if diagonal:
            over &= (other * size + order)[None, :] > (number * size + order)[:, None]
        return over.any(axis=1), over.any(axis=0)

    def of_tile(row, number, column, other):
        if not diagonal:
            return compared(row, number, column, other)
        none = jnp.zeros(size, bool)
        return jax.lax.cond(
            other < number, lambda *_: (none, none), compared, row, number, column, other
        )

    others = jnp.arange(len(columns), dtype=jnp.int32)

    def row_of_tiles(args):
        return jax.lax.map(lambda x: of_tile(*args, *x), (columns, others))

    return jax.lax.map(row_of_tiles, (rows, numbers))
