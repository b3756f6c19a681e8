"""Logistic regression by L-BFGS on devices: the optimum of scikit-learn's LogisticRegression(C).

The objective is C times the sum of cross-entropies plus half the squared norm of the weights; the
intercept is free. It is minimized as the mean of cross-entropies, in float32, after an exact
change of variables in which its curvature is about that of a unit matrix: what takes hundreds of
steps otherwise takes a dozen. The change follows the curvature, which moves with the weights, from
round to round. One program serves every C.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax import sharding

TOLERANCE = 1e-7  # of the objective: where the next step is expected to gain less, a fit ends
ROUND = 30  # steps until the variables are changed again
MEMORY = 10  # pairs of differences that L-BFGS keeps
# Shards of the examples. Their sums are added pairwise: on any number of devices that divides it,
# the same numbers are added in the same order.
PARTS = 16
SAMPLE = 8  # rows for each feature, by which the curvature is estimated
ROWS = 8192  # whose logits are on the host at a time
STALLED = 5  # steps without progress that float32 can show


@dataclasses.dataclass(frozen=True)
class Fit:
    """Weights float64 [D, K] and intercepts [K] of rows as they were given; for two classes K is 1.

    `objective` is scikit-learn's; `converged` is False if the iterations ran out.
    """

    C: float
    weights: np.ndarray
    bias: np.ndarray
    objective: float
    iterations: int
    converged: bool


class Regression:
    """Labeled rows on all devices, to be fitted at any C, and on any subset of the rows.

    `rows` are float32 [N, D]. `targets` are labels int [N] from 0 to `classes` - 1: one multinomial
    regression, with two classes a binary one. Or bool [N, K]: K binary regressions at once.
    """

    def __init__(
        self, rows: np.ndarray, targets: np.ndarray, classes: int, *, mesh: Mesh | None = None
    ):
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        self.center = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = rows.std(axis=0, dtype=np.float64).astype(np.float32)
        # What does not vary is no feature; the smallest spread is that of rounding.
        constant = spread <= 1e-6 * np.abs(self.center)
        self.scale = np.where(constant | (spread == 0), 1, spread).astype(np.float32)
        if targets.ndim == 1 and classes == 2:
            targets = targets[:, None] == 1
        self.softmax = targets.ndim == 1
        self.columns = classes if self.softmax else targets.shape[1]
        self.given, self.labels = rows, targets
        self.rows, self.targets = self._shard(self._standard(rows)), self._shard(targets)

    def fit(
        self,
        C: float,
        *,
        among: np.ndarray | None = None,
        start: Fit | None = None,
        max_iterations: int = 1000,
    ) -> Fit:
        """Fits the rows, or those where `among`, bool [N], is True; begins at `start`, if given."""
        weight = np.ones(len(self.given)) if among is None else among.astype(float)
        penalty = 1 / (C * weight.sum())  # of the mean's half squared norm
        prior = self._prior(weight)
        w, b = np.zeros((len(self.scale), self.columns)), prior
        if start is not None:
            w, b = start.weights * self.scale[:, None], start.bias + self.center @ start.weights
        problem = _Problem(
            self.rows,
            self.targets,
            self._shard(weight.astype(np.float32)),
            *self._replicated(penalty / self.scale.astype(float) ** 2, prior),
        )
        solve = _program(self.mesh, self.softmax)
        iterations, converged, value = 0, False, np.float32(np.nan)
        while not converged and iterations < max_iterations:
            variables = self._replicated(*self._basis(penalty, weight, w, b), w, b)
            limit = np.int32(min(ROUND, max_iterations - iterations))
            w, b, value, steps, converged = map(np.asarray, solve(problem, *variables, limit))
            iterations += int(steps)
        weights = w / self.scale.astype(float)[:, None]
        return Fit(
            C=C,
            weights=weights,
            bias=b - self.center.astype(float) @ weights,
            objective=float(value) / penalty,
            iterations=iterations,
            converged=bool(converged),
        )

    def _standard(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.center) / self.scale

    def _prior(self, weight: np.ndarray) -> np.ndarray:
        """The intercepts [K] that are best without features: those of the classes' frequencies."""
        if self.softmax:
            count = np.bincount(self.labels, weight, self.columns)
            return np.log(np.maximum(count, 0.5))
        count = weight.astype(np.float64) @ self.labels
        return np.log(np.maximum(count, 0.5) / np.maximum(weight.sum() - count, 0.5))

    def _basis(
        self, penalty: float, weight: np.ndarray, w: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """New coordinates of weights [D, D] and intercepts, in which the curvature at w and b is
        about 1 in every direction.
        """
        # Of a class, it is p (1 - p) times the rows' second moments; here, the mean over classes.
        curvature = self._curvature(w, b) * weight
        mean = max(curvature.sum() / weight.sum(), 1e-9)
        count = max(4096, SAMPLE * len(w))
        if len(curvature) <= count:
            sample = self._standard(self.given) * np.sqrt(curvature)[:, None]
            hessian = sample.T @ sample / weight.sum()
        else:  # rows drawn in proportion, at even distances
            edges = np.cumsum(curvature)
            drawn = np.searchsorted(edges, (np.arange(count) + 0.5) / count * edges[-1])
            # In float64: rounding leaves features that depend on each other no negative curvature.
            sample = self._standard(self.given[drawn]).astype(float)
            hessian = sample.T @ sample * (mean / count)
        floor = 1e-6 * mean  # for directions without data: second moments are about 1 on average
        hessian[np.diag_indices_from(hessian)] += penalty / self.scale.astype(float) ** 2 + floor
        root = scipy.linalg.cholesky(hessian, lower=True)
        eye = np.eye(len(root))
        # pyrefly: ignore[missing-attribute]  # an array, though SciPy has no types that say so
        return scipy.linalg.solve_triangular(root, eye, lower=True).T, mean**-0.5

    def _curvature(self, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The mean of p (1 - p) over classes, of each row."""
        weights = (w / self.scale[:, None]).astype(np.float32)
        bias = (b - self.center @ weights).astype(np.float32)
        found = np.empty(len(self.given))
        for start in range(0, len(found), ROWS):
            z = self.given[start : start + ROWS] @ weights + bias
            if self.softmax:
                p = np.exp(z - z.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
            else:
                p = 1 / (1 + np.exp(-np.clip(z, -80, 80)))
            found[start : start + ROWS] = (p * (1 - p)).mean(axis=1, dtype=float)
        return found

    def _shard(self, array: np.ndarray) -> jax.Array:
        """Shards examples over the devices: [parts, examples per part, ...], padded at the end."""
        parts = self.mesh.size * -(-PARTS // self.mesh.size)
        each = -(-len(array) // parts)
        padded = np.zeros((parts * each, *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        padded = padded.reshape(parts, each, *array.shape[1:])
        where = sharding.over_batch(self.mesh)
        return jax.make_array_from_callback(padded.shape, where, padded.__getitem__)

    def _replicated(self, *arrays: Any) -> list[jax.Array]:
        where = sharding.replicated(self.mesh)
        local = [np.asarray(array, np.float32) for array in arrays]
        return [jax.make_array_from_callback(a.shape, where, a.__getitem__) for a in local]


class _Problem(NamedTuple):
    x: jax.Array  # features [parts, n, D], standardized
    y: jax.Array  # targets, int [parts, n] or bool [parts, n, K]
    weight: jax.Array  # of each example [parts, n]: 1, or 0 for padding and what is held out
    penalty: jax.Array  # [D]: of half the squared weights
    prior: jax.Array  # [K]: intercepts of the model without features


class _State(NamedTuple):
    step: jax.Array
    u: jax.Array  # [D + 1, K]: weights and intercepts in the preconditioned coordinates
    w: jax.Array  # [D, K]
    b: jax.Array  # [K]
    z: jax.Array  # logits [parts, n, K]
    value: jax.Array  # the objective, one step before
    lbfgs: Any
    stalled: jax.Array  # steps in a row without progress
    converged: jax.Array


@functools.cache
def _program(mesh: Mesh, softmax: bool) -> Callable:
    """The compiled solver of a mesh; examples are sharded, everything else is replicated."""
    sharded, replicated = PartitionSpec(sharding.RULES['batch']), PartitionSpec()
    # pyrefly: ignore[bad-argument-type]  # in place of the arrays, how each is sharded
    problem = _Problem(sharded, sharded, sharded, replicated, replicated)
    solve = functools.partial(_solve, softmax=softmax, axes=mesh.axis_names)
    return jax.jit(
        jax.shard_map(
            solve,
            mesh=mesh,
            in_specs=(problem, *[replicated] * 5),
            out_specs=replicated,
            check_vma=False,  # sums are gathered and added: JAX does not see that they are equal
        ),
        out_shardings=NamedSharding(mesh, replicated),
    )


class _Objective:
    """The mean cross-entropy plus the penalty: J(w, b) = mean(loss) + sum(penalty w^2) / 2.

    Gradients are those of the preconditioned coordinates u, where w = P u[:-1], b = p u[-1].
    """

    def __init__(
        self, problem: _Problem, P: jax.Array, p: jax.Array, *, softmax: bool, axes: tuple[str, ...]
    ):
        self.problem, self.P, self.p = problem, P, p
        self.link = _Softmax(problem.y, len(problem.prior)) if softmax else _Sigmoid(problem.y)
        self.total = functools.partial(_total, axes=axes)
        self.count = self.total(problem.weight.sum(axis=1))

    def mean(self, values: jax.Array) -> jax.Array:
        """The weighted mean of a number per example, [parts, n]."""
        return self.total((values * self.problem.weight).sum(axis=1)) / self.count

    def logits(self, w: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: _dot(part, w), self.problem.x) + b

    def loss(self, z: jax.Array) -> jax.Array:
        """The mean cross-entropy at logits z."""
        return self.mean(self.link.loss(z)[0])

    def regularizer(self, w: jax.Array) -> jax.Array:
        return jnp.sum(self.problem.penalty[:, None] * w * w) / 2

    def value_and_gradient(self, w: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """J at weights w with logits z, and its gradient with respect to u."""
        loss, residual = self.link.loss(z)
        residual = residual * self.problem.weight[..., None]
        # Of the two orders of this product, the one that is fast on CPU.
        products = jax.lax.map(lambda part: _dot(part[1].T, part[0]), (self.problem.x, residual))
        dw, db = self.total(products).T, self.total(residual.sum(axis=1))
        value = self.mean(loss) + self.regularizer(w)
        dw = dw / self.count + self.problem.penalty[:, None] * w
        return value, jnp.concatenate([_dot(self.P.T, dw), self.p * db[None] / self.count])

    def minimize_on_line(
        self, z: jax.Array, dz: jax.Array, w: jax.Array, dw: jax.Array, slope: jax.Array
    ) -> jax.Array:
        """The step t that minimizes the convex J(w + t dw), whose slope at 0 is `slope`.

        Newton's method; where it leaves the bracket [low, high], bisection.
        """
        linear = jnp.sum(self.problem.penalty[:, None] * w * dw)
        quadratic = jnp.sum(self.problem.penalty[:, None] * dw * dw)

        def narrow(carry: tuple) -> tuple:
            k, _, t, low, high, _ = carry
            first, second = self.link.along(z + t * dz, dz)
            first = self.mean(first) + linear + t * quadratic
            low, high = jnp.where(first < 0, t, low), jnp.where(first < 0, high, t)
            newton = t - first / (self.mean(second) + quadratic)
            middle = jnp.where(jnp.isfinite(high), (low + high) / 2, 4 * t)
            inside = (newton > low) & (newton < jnp.minimum(high, 10 * t))
            return k + 1, t, jnp.where(inside, newton, middle), low, high, first

        def inexact(carry: tuple) -> jax.Array:
            k, *_, first = carry
            return (k < 30) & (jnp.abs(first) > 0.1 * jnp.abs(slope))

        zero, one, infinity = map(jnp.float32, (0, 1, jnp.inf))
        return jax.lax.while_loop(inexact, narrow, (0, zero, one, zero, infinity, slope))[1]


def _solve(
    problem: _Problem,
    P: jax.Array,
    p: jax.Array,
    w: jax.Array,
    b: jax.Array,
    max_steps: jax.Array,
    *,
    softmax: bool,
    axes: tuple[str, ...],
) -> tuple[jax.Array, ...]:
    """L-BFGS (Liu and Nocedal 1989) in preconditioned coordinates, with an exact line search: it
    works on logits, and needs no pass over the features.

    Returns weights, intercepts, the objective, the number of steps, and whether it converged.
    """
    objective = _Objective(problem, P, p, softmax=softmax, axes=axes)
    lbfgs = optax.scale_by_lbfgs(MEMORY)

    def step(state: _State) -> _State:
        value, gradient = objective.value_and_gradient(state.w, state.z)
        update, memory = lbfgs.update(gradient, state.lbfgs, state.u)
        ascent = cast(jax.Array, update)  # H g, an array like the gradient
        slope = -jnp.sum(gradient * ascent)
        # Half the squared Newton decrement estimates J - min J. What features explain of the loss
        # may be little, and is found with the same relative accuracy.
        improvable = -slope / 2 > TOLERANCE * jnp.minimum(value, loss_of_prior - value)
        worse = value >= state.value * (1 - 1e-7)
        stalled = jnp.where(worse, state.stalled + 1, 0)
        dw, db = -_dot(P, ascent[:-1]), -p * ascent[-1]
        dz = objective.logits(dw, db)
        t = objective.minimize_on_line(state.z, dz, state.w, dw, slope)
        return _State(
            state.step + 1,
            state.u - t * ascent,
            state.w + t * dw,
            state.b + t * db,
            state.z + t * dz,
            value,
            memory,
            stalled,
            ~improvable | (stalled >= STALLED),
        )

    z = objective.logits(w, b)
    loss_of_prior = objective.loss(jnp.broadcast_to(problem.prior, z.shape))
    u = jnp.zeros((len(w) + 1, len(b)))  # the coordinates are relative to where the fit starts
    zero, infinity = jnp.int32(0), jnp.float32(jnp.inf)
    state = _State(zero, u, w, b, z, infinity, lbfgs.init(u), zero, jnp.bool_(False))
    end = jax.lax.while_loop(lambda s: ~s.converged & (s.step < max_steps), step, state)
    # From the weights again: the logits of the loop have accumulated rounding errors.
    value = objective.loss(objective.logits(end.w, end.b)) + objective.regularizer(end.w)
    return end.w, end.b, value, end.step, end.converged


class _Softmax:
    """Cross-entropy of one class among K, from the others' share: exact also where that is tiny."""

    def __init__(self, labels: jax.Array, classes: int):
        self.own = labels[..., None] == jnp.arange(classes)

    def _others(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The margin by which the other classes lead, and each one's share among them."""
        others = jnp.where(self.own, -jnp.inf, z)
        highest = others.max(axis=-1, keepdims=True)
        share = jnp.exp(others - highest)
        sum_ = share.sum(axis=-1, keepdims=True)
        own = jnp.where(self.own, z, 0).sum(axis=-1)
        return (highest + jnp.log(sum_))[..., 0] - own, share / sum_

    def loss(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Losses [..., n] and their derivatives [..., n, K]."""
        margin, share = self._others(z)
        wrong = jax.nn.sigmoid(margin)[..., None]
        return jax.nn.softplus(margin), jnp.where(self.own, -wrong, wrong * share)

    def along(self, z: jax.Array, dz: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First and second derivatives [..., n] of the losses at z in the direction dz."""
        margin, share = self._others(z)
        wrong = jax.nn.sigmoid(margin)
        own = jnp.where(self.own, dz, 0).sum(axis=-1, keepdims=True)
        change = dz - own
        first = wrong * (share * change).sum(axis=-1)
        second = wrong * (share * change * change).sum(axis=-1) - first * first
        return first, second


class _Sigmoid:
    """The sum of K binary cross-entropies."""

    def __init__(self, targets: jax.Array):
        self.sign = jnp.where(targets, 1.0, -1.0)

    def loss(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Losses [..., n] and their derivatives [..., n, K]."""
        margin = -self.sign * z
        return jax.nn.softplus(margin).sum(axis=-1), -self.sign * jax.nn.sigmoid(margin)

    def along(self, z: jax.Array, dz: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First and second derivatives [..., n] of the losses at z in the direction dz."""
        margin = -self.sign * z
        wrong = jax.nn.sigmoid(margin)
        first = (-self.sign * wrong * dz).sum(axis=-1)
        return first, (wrong * jax.nn.sigmoid(-margin) * dz * dz).sum(axis=-1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # By default accelerators multiply float32 with fewer bits.
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _total(parts: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Adds up the parts of all devices pairwise: first each device's own, then the devices'."""
    return _pairwise(jax.lax.all_gather(_pairwise(parts), axes))


def _pairwise(parts: jax.Array) -> jax.Array:
    while len(parts) > 1:
        if len(parts) % 2:
            parts = jnp.concatenate([parts, jnp.zeros_like(parts[:1])])
        parts = parts[0::2] + parts[1::2]
    return parts[0]
