r"""Time of one linear probe and of the paper's sweep, against scikit-learn in the same run.

    python experiments/benchmarks/probe.py --turns=3
    python experiments/benchmarks/probe.py --rows=10000 --dim=256 --turns=1 --C 1

Both fit the same float32 rows at the same values of C, in turn, with at most 1,000 iterations each.
scikit-learn is as its users call it (default tolerance), once more with a tolerance at which its
objective is as good as ours. Ours is timed with compiling, as a first fit has it, and without.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def features(rows: int, dim: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of classes that overlap, with a spectrum that falls like that of an image encoder,
    around a common mean; and labels, of which a few are wrong.
    """
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    scale = (1.0 + np.arange(dim)) ** -0.75
    means = 0.25 * rng.normal(size=(classes, dim)) * scale
    right = rng.integers(classes, size=rows)
    x = (means[right] + rng.normal(size=(rows, dim)) * scale) @ turn + turn[0]
    labels = np.where(rng.random(rows) < 0.02, rng.integers(classes, size=rows), right)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def objective(weights: np.ndarray, bias: np.ndarray, data: tuple, C: float) -> float:
    """scikit-learn's, in float64."""
    rows, labels = data
    z = rows.astype(np.float64) @ weights + bias
    loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]
    return C * loss.sum() + (weights**2).sum() / 2


def accuracy(weights: np.ndarray, bias: np.ndarray, data: tuple) -> float:
    rows, labels = data
    return float(np.mean((rows @ weights + bias).argmax(axis=1) == labels))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    made = run()
    return time.perf_counter() - begin, made


def theirs(data: tuple, C: float, tol: float) -> tuple[np.ndarray, np.ndarray, int]:
    """scikit-learn's weights [D, K], intercepts and iterations."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, solver='lbfgs', max_iter=1000, tol=tol).fit(*data)
    return model.coef_.T, model.intercept_, int(model.n_iter_[0])


def spread(seconds: Sequence[float], form: str = '.2f') -> str:
    return f'{statistics.median(seconds):{form}} ({min(seconds):{form}} to {max(seconds):{form}})'


def single(train: tuple, test: tuple, classes: int, C: float, turns: int, tol: float) -> None:
    """Prints the rows of one fit."""
    from clip_jax.evals._logistic import Regression

    seconds: dict[str, list[float]] = {'ours': [], 'default': [], 'fine': []}
    for _ in range(turns):
        took, fit = timed(lambda: Regression(*train, classes).fit(C))
        seconds['ours'].append(took)
        for name, tolerance in ('default', 1e-4), ('fine', tol):
            took, found = timed(lambda tolerance=tolerance: theirs(train, C, tolerance))
            seconds[name].append(took)
            if name == 'default':
                default = found
            else:
                fine = found
    rows = [
        ('scikit-learn', default, seconds['default']),
        (f'scikit-learn, tol={tol:g}', fine, seconds['fine']),
        ('ours', (fit.weights, fit.bias, fit.iterations), seconds['ours']),
    ]
    best = min(objective(*found[:2], train, C) for _, found, _ in rows)
    for name, (weights, bias, iterations), took in rows:
        ratios = [t / s for t, s in zip(took, seconds['default'], strict=True)]
        cells = [f'{C:g}', name, spread(took), spread(ratios), f'{iterations:,}']
        cells.append(f'{objective(weights, bias, train, C) / best - 1:.1e}')
        cells.append(f'{100 * accuracy(weights, bias, test):.2f} %')
        print('| ' + ' | '.join(cells) + ' |', flush=True)


def whole(train: tuple, validation: tuple, classes: int) -> None:
    """Prints the rows of a sweep: ours, then scikit-learn at the values of C that ours visits."""
    from clip_jax.evals import _sweep
    from clip_jax.evals._logistic import Regression

    def sweep() -> list:
        regression = Regression(*train, classes)
        return _sweep.sweep(
            lambda C, start: regression.fit(C, start=start),
            lambda fit: accuracy(fit.weights, fit.bias, validation),
        )

    took, tried = timed(sweep)
    chosen = _sweep.best(tried)
    their_seconds, their_steps, found = 0.0, 0, []
    for fit, score in tried:
        one, (weights, bias, iterations) = timed(lambda C=fit.C: theirs(train, C, 1e-4))
        their_seconds, their_steps = their_seconds + one, their_steps + iterations
        their_score = accuracy(weights, bias, validation)
        better = objective(weights, bias, train, fit.C) / fit.objective - 1
        found.append((their_score, -fit.C))
        print(
            f'| {fit.C:.3g} | {fit.iterations} | {iterations} | {better:.1e} '
            f'| {100 * score:.2f} % | {100 * their_score:.2f} % |',
            flush=True,
        )
    their_best = -max(found)[1]
    steps = sum(fit.iterations for fit, _ in tried)
    print(f'\n{len(tried)} fits; ours chooses C = {chosen.C:.3g}, scikit-learn {their_best:.3g}\n')
    print('| sweep | seconds | times scikit-learn | iterations |')
    print('|---|---|---|---|')
    print(f'| scikit-learn | {their_seconds:.1f} | 1 | {their_steps:,} |')
    print(f'| ours | {took:.1f} | {took / their_seconds:.3f} | {steps:,} |')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rows', type=int, default=50_000)
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--classes', type=int, default=10)
    parser.add_argument('--C', type=float, nargs='+', default=[0.316, 10, 1000])
    parser.add_argument('--tol', type=float, default=1e-6, help="scikit-learn's, once more")
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--no-sweep', action='store_true')
    args = parser.parse_args()
    warnings.filterwarnings('ignore', message='lbfgs failed to converge')
    import jax
    import sklearn

    from clip_jax.evals._logistic import Regression

    rows, labels = features(args.rows + 20_000, args.dim, args.classes, 0)
    ends = args.rows, args.rows + 10_000
    train, validation, test = zip(np.split(rows, ends), np.split(labels, ends), strict=True)
    print(
        f'JAX {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}; '
        f'scikit-learn {sklearn.__version__}'
    )
    print(f'{args.rows:,} x {args.dim} rows, {args.classes} classes\n')
    first, _ = timed(lambda: Regression(*train, args.classes).fit(args.C[0]))
    again, _ = timed(lambda: Regression(*train, args.classes).fit(args.C[0]))
    print(f'first fit in a process {first:.1f} s, the same again {again:.1f} s\n')
    print('| C | solver | seconds | times scikit-learn | iterations | above the best | test |')
    print('|---|---|---|---|---|---|---|')
    for C in args.C:
        single(train, test, args.classes, C, args.turns, args.tol)
    if not args.no_sweep:
        print('\n| C | our iterations | theirs | their objective above ours | score | theirs |')
        print('|---|---|---|---|---|---|')
        whole(train, validation, args.classes)


if __name__ == '__main__':
    main()
