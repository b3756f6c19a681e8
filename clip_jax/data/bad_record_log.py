"""The bad records of a run: counted over all hosts and restarts, listed, an error if too many."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from clip_jax.data import examples
from clip_jax.data.errors import BAD_RECORD_KINDS
from clip_jax.data.sources import Source
from clip_jax.runtime import atomic, foreign_json, multihost

LISTED = 1_000  # records that each host lists in its file
MIN_BAD = 32  # bad records below which their fraction is not checked


class BadRecordLog:
    """Counts the records that were replaced; all hosts call each method at the same step.

    The first LISTED records of each host are listed in `bad_records-HOST.jsonl`.

    Args:
        source: the training data.
        workdir: the run directory.
        step: the step that the run starts or resumes from.
        counts: counts by kind, of all hosts, until that step.
        max_bad_fraction: the fraction of bad records above which the run stops.
    """

    def __init__(
        self,
        source: Source,
        workdir: epath.Path,
        *,
        step: int,
        counts: Mapping[str, int],
        max_bad_fraction: float,
    ):
        self.counts = Counter(counts)
        self.path = workdir / f'bad_records-{jax.process_index():05}.jsonl'
        self._source, self._max_bad_fraction = source, max_bad_fraction
        self._listed = self._until(step)

    def _until(self, step: int) -> list[dict]:
        """The lines of the file up to a step; the run will read the later records again."""
        if not self.path.exists():
            return []
        lines = [
            foreign_json.parse(line, str(self.path), {'step': int})
            for line in self.path.read_text().splitlines()
        ]
        return [line for line in lines if line['step'] <= step]

    def add(self, step: int, bad: Sequence[tuple[int, str]], seen: int) -> None:
        """Adds the bad records of this host since the last call.

        Args:
            step: the step.
            bad: (index, kind) of each record.
            seen: the number of examples of all hosts so far.

        Raises:
            ValueError: if the fraction of bad records is too high.
        """
        local = Counter(kind for _, kind in bad)
        total = multihost.all_reduce_sum(np.array([local[kind] for kind in BAD_RECORD_KINDS]))
        self.counts += Counter(dict(zip(BAD_RECORD_KINDS, map(int, total), strict=True)))
        new = bad[: LISTED - len(self._listed)]
        if new:
            self._listed += [
                {'step': step, 'kind': kind, 'where': self._source.where(record)}
                for record, kind in new
            ]
            lines = ''.join(json.dumps(x) + '\n' for x in self._listed)
            atomic.write(self.path, lines)
        fraction = examples.bad_fraction(self.counts, seen)
        if fraction > self._max_bad_fraction and fraction * seen >= MIN_BAD:
            raise ValueError(
                f'{fraction:.1%} of the records read until step {step:,} are bad, more than '
                f'data.max_bad_fraction, {self._max_bad_fraction:.1%}: '
                f'{examples.describe_counts(self.counts)}. '
                f'{self.path} lists them; clip-jax data verify checks all records'
            )
