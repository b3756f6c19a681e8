"""The search for the regularization of a probe (CLIP, arXiv 2103.00020, appendix A.3)."""

from collections.abc import Callable

from clip_jax.evals._logistic import Fit
from clip_jax.runtime.progress import Progress

LOWEST, HIGHEST = -6, 6  # of log10 C
PER_DECADE = 8
FIRST = 2 * PER_DECADE  # grid points between the first values


def sweep(
    fit: Callable[[float, Fit | None], Fit], score: Callable[[Fit], float]
) -> list[tuple[Fit, float]]:
    """Searches a grid of C, 8 points per decade from 1e-6 to 1e6, for the highest score.

    Seven values two decades apart come first; then both neighbors of the best, at half the distance
    each time, down to the grid.

    Args:
        fit: (C, an earlier fit to start from or None) -> fit.
        score: the score of a fit.

    Returns:
        The fits with their scores, by rising C.
    """
    found: dict[int, tuple[Fit, float]] = {}
    last = (HIGHEST - LOWEST) * PER_DECADE
    with Progress(unit='fits', log=False) as progress:

        def visit(step: int) -> None:
            if step in found or not 0 <= step <= last:
                return
            near = min(found, key=lambda other: abs(other - step), default=None)
            C = 10.0 ** (LOWEST + step / PER_DECADE)
            progress.describe(f'C = {C:.2g}')
            made = fit(C, None if near is None else found[near][0])
            found[step] = made, score(made)
            progress.advance()

        for step in range(0, last + 1, FIRST):
            visit(step)
        width = FIRST // 2
        while width:
            best = _best(found)
            visit(best - width)
            visit(best + width)
            width //= 2
    return [found[step] for step in sorted(found)]


def best(tried: list[tuple[Fit, float]]) -> Fit:
    """Returns the fit with the highest score; of equal ones, the most regularized."""
    return tried[_best(dict(enumerate(tried)))][0]


def _best(found: dict[int, tuple[Fit, float]]) -> int:
    return max(sorted(found), key=lambda step: found[step][1])
