"""Scores of groups of images, such as the regions of WILDS' FMoW: a model is as good as in its
worst group (Koh et al., WILDS, arXiv 2012.07421, section 4).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.evals import _intervals, score


def of(records: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Returns the group of each record, [N]; None if none has one.

    Raises:
        ValueError: only some records have a group.
    """
    found = [record.get('group') for record in records]
    count = sum(group is not None for group in found)
    if count not in (0, len(found)):
        raise ValueError(
            f'evals: {count:,} of {len(found):,} images have a group; expected one for each'
        )
    return np.array(found) if count else None


def added(
    report: Mapping[str, Any], groups: np.ndarray | None, right: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns a report with scores by group.

    Args:
        report: the report.
        groups: the group of each image, [N]; None for none.
        right: for each score by name, whether an image counts, bool [N].

    Returns:
        The report. If there are groups, it also has the score of the worst group, `worst_group` for
        the first name and `worst_group_NAME` for the others, and the key `groups`, in which groups
        are in the order of their names, with numbers in them in numerical order.
    """
    if groups is None:
        return dict(report)
    of_group = {group: groups == group for group in sorted({*groups.tolist()}, key=_order)}
    rows, worst = {}, {}
    for name, ok in right.items():
        hits = {group: (int(ok[own].sum()), int(own.sum())) for group, own in of_group.items()}
        rows[f'{name} by group'] = [
            [group, count, hit / count, *(_intervals.of_fraction(hit, count) or ())]
            for group, (hit, count) in hits.items()
        ]
        lowest = min(hit / count for hit, count in hits.values())
        worst['worst_group' + (f'_{name}' if worst else '')] = score(lowest)
    return {
        **report,
        'scores': {**report['scores'], **worst},
        'counts': {**report['counts'], 'groups': len(of_group)},
        'groups': rows,
    }


def _order(group: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r'\d+|[^\d\s]+', group)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
