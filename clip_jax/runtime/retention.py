"""Which checkpoints of a run are kept."""

import math
from collections.abc import Mapping, Sequence


def kept(
    found: Sequence[int],
    scores: Mapping[int, float],
    *,
    last: int,
    every: int,
    best: int,
) -> set[int]:
    """Returns the steps to keep: the `last` ones, the first at or after each multiple of `every`,
    and the `best` ones by score, where higher is better, of equals the newer, and NaN is no score.
    """
    scored = [step for step in found if not math.isnan(scores.get(step, math.nan))]
    scored.sort(key=lambda step: (scores[step], step))
    # A save may be late.
    first = {step // every: step for step in sorted(found, reverse=True) if step >= every > 0}
    return {
        *sorted(found)[-last:],
        *first.values(),
        *(scored[-best:] if best else ()),
    }
