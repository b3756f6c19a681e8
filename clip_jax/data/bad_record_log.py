"""What a run could not use: counted over all hosts and restarts, listed, and too much of it an
error.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from clip_jax.data import examples
from clip_jax.data.errors import BAD_RECORD_KINDS
from clip_jax.data.sources import Source
from clip_jax.runtime import atomic, multihost

LISTED = 1_000  # records that a host names in its file
MIN_BAD = 32  # bad records before a share of them says anything


class BadRecordLog:
    """Counts of the records that gave way to others; every host calls each method at the same step.

    `counts` are those of the whole run until `step`. The first LISTED records of each host are
    named in `bad_records-HOST.jsonl`.
    """

    def __init__(
        self,
        source: Source,
        workdir: epath.Path,
        *,
        step: int,
        counts: Mapping[str, int],
        max_share: float,
    ):
        self.counts = Counter(counts)
        self.path = workdir / f'bad_records-{jax.process_index():05}.jsonl'
        self._source, self._max_share = source, max_share
        self._listed = self._until(step)

    def _until(self, step: int) -> list[dict]:
        """What the file says of steps until then: a restart meets the later ones again."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in lines if line['step'] <= step]

    def add(self, step: int, troubles: Sequence[tuple[int, str]], seen: int) -> None:
        """Adds what this host has met since the last call; `seen` are the rows of all hosts so far.

        ValueError if more than the allowed share of what was read is bad.
        """
        local = Counter(kind for _, kind in troubles)
        total = multihost.all_reduce_sum(np.array([local[kind] for kind in BAD_RECORD_KINDS]))
        self.counts += Counter(dict(zip(BAD_RECORD_KINDS, map(int, total), strict=True)))
        new = troubles[: LISTED - len(self._listed)]
        if new:
            self._listed += [
                {'step': step, 'kind': kind, 'where': self._source.where(record)}
                for record, kind in new
            ]
            lines = ''.join(json.dumps(x) + '\n' for x in self._listed)
            atomic.write(self.path, lines)
        share = examples.bad_fraction(self.counts, seen)
        if share > self._max_share and share * seen >= MIN_BAD:
            raise ValueError(
                f'{share:.1%} of the records read until step {step:,} cannot be used, more than '
                f'data.max_bad_fraction, {self._max_share:.1%}: '
                f'{examples.describe_counts(self.counts)}. '
                f'{self.path} names them; clip-jax data verify reads all'
            )
