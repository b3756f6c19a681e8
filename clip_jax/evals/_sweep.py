"""The sweep for the strength of a probe's penalty (arXiv 2103.00020, appendix A.3)."""

from collections.abc import Callable

from clip_jax.evals._logistic import Fit
from clip_jax.runtime.progress import Progress

LOWEST, HIGHEST = -6, 6  # of log10 C
PER_DECADE = 8
FIRST = 2 * PER_DECADE  # steps between those that are tried first


def sweep(
    fit: Callable[[float, Fit | None], Fit], score: Callable[[Fit], float]
) -> list[tuple[Fit, float]]:
    """Searches 96 steps of C from 1e-6 to 1e6 for the best score: first seven values, two decades
    apart, then on either side of the best, at half the distance each time, down to a step.

    `fit(C, start)` may begin at an earlier fit. Returns what was tried with its score, by rising C.
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
    """The fit with the highest score; of equal ones, the one with the strongest penalty."""
    return tried[_best(dict(enumerate(tried)))][0]


def _best(found: dict[int, tuple[Fit, float]]) -> int:
    return max(sorted(found), key=lambda step: found[step][1])
