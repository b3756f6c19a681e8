"""Keeps the records of a data set whose captions fit their images best, by the CLIP score.

The score of a caption is the cosine similarity of its embedding and that of the image (CLIPScore
without its factor, arXiv 2104.08718), exact in the sense of runtime/similarity.py, so that equal
pairs tie. Keeping the 30 % with the highest scores is a baseline of DataComp (arXiv 2304.14108).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from clip_jax import lookup
from clip_jax.data import kept_list
from clip_jax.data.embedding_store import Embeddings, text_file
from clip_jax.data.kept_list import KeptList
from clip_jax.data.sharded_job import check_files, check_settings
from clip_jax.data.sources import Source
from clip_jax.embeddings import _rows
from clip_jax.runtime import atomic, foreign_json, similarity
from clip_jax.runtime.messages import first_few

KEPT, REPORT, PICTURE, EMBEDDED = 'kept.parquet', 'filter.json', 'scores.png', 'embeddings'
CAPTIONS = ('mean', 'best', 'first')
BINS = 100  # of the histogram


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which records are kept.

    Attributes:
        min_score: those with at least this score.
        keep: or this share of the scored records, those with the highest scores; of equal scores
            the records that come first.
        captions: the score of a record with several captions: their 'mean', the 'best', or that of
            the 'first'.
        within: only records that all of these lists (files) keep.
    """

    min_score: float | None = None
    keep: float | None = None
    captions: str = ''
    within: Sequence[str] = ()

    def __post_init__(self):
        if self.min_score is not None and self.keep is not None:
            raise ValueError('--min-score and --keep are both given; expected one of them')
        if not self.scored and not self.within:
            raise ValueError('--min-score or --keep must be given, or lists to combine (--within)')
        if not self.scored and self.captions:
            raise ValueError('--captions is of scores; give --min-score or --keep too')
        if self.captions:
            lookup.check(self.captions, CAPTIONS, what='--captions')
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise ValueError(f'--min-score is {self.min_score}; expected a cosine from -1 to 1')
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f'--keep is {self.keep}; expected a share above 0, at most 1')

    @property
    def scored(self) -> bool:
        """Whether the rule looks at scores."""
        return self.min_score is not None or self.keep is not None

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that the list depends on."""
        return {**dataclasses.asdict(self), 'captions': self.captions or CAPTIONS[0]}


def check_folder(out: str, settings: Mapping[str, Any]) -> epath.Path:
    """Returns the folder; ValueError if it holds a list by another rule, or anything else."""
    folder = epath.Path(out).expanduser()
    atomic.check_place(folder / REPORT, '--out')
    check_files(folder, KEPT, REPORT, PICTURE, EMBEDDED, what='--out')
    if (folder / REPORT).exists():
        check_settings(
            foreign_json.read(folder / REPORT).get('settings', {}),
            settings,
            title=f'--out: {folder} holds a list',
            remedy='Give the same options, or name another folder',
        )
    return folder


def of_embeddings(
    source: Embeddings, rule: Rule, folder: epath.Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the list of the records that a rule keeps, of data whose embeddings are stored.

    Args:
        source: the embeddings of images and captions.
        rule: which records are kept.
        folder: where the list and its report go.
        settings: what the report says the list depends on.

    Returns:
        The report: JSON values, with the histogram of the scores.

    Raises:
        ValueError: there are no embeddings of captions, nothing is kept, or the data are not there
            any more or others.
    """
    description = source.description
    if description.features != 'embedding' or description.captions != 'embedding':
        raise ValueError(
            f'{source}: has no embeddings of captions to compare with the images; write a folder '
            'with clip-jax embed --features=embedding, from a model that has a tokenizer'
        )
    _, of = _rows.data_set(source)
    records, scores = score_records(source, rule.captions or CAPTIONS[0])
    counts = {'records': of.source_records, 'without_embedding': of.source_records - len(source)}
    counts['without_caption'] = len(source) - len(records)
    if rule.within:
        inside = np.isin(records, _common(of, rule.within), assume_unique=True)
        counts['outside_the_lists'] = int(np.count_nonzero(~inside))
        records, scores = records[inside], scores[inside]
    counts['scored'] = len(records)
    chosen = choose(scores, rule)
    if not chosen.any():
        most = f'the highest score is {scores.max():.4g}' if len(scores) else 'none is scored'
        raise ValueError(f'{source}: no record is kept, {most}; relax --min-score or --keep')
    kept = KeptList(of, records[chosen], scores[chosen])
    return _written(kept, folder, settings, counts, scores)


def of_lists(data: kept_list.DataSet, rule: Rule, folder: epath.Path, settings: Mapping) -> dict:
    """Writes the list of the records of a data set that all lists of a rule keep; returns the
    report. ValueError if there are none, or if a list is of other data.
    """
    records = _common(data, rule.within)
    if not len(records):
        raise ValueError(f'--within: no record is in all of {first_few(rule.within)}')
    counts = {'records': data.source_records}
    return _written(KeptList(data, records), folder, settings, counts, None)


def describe(
    source: Source, spec: str, options: Mapping[str, Mapping[str, Any]]
) -> kept_list.DataSet:
    """Describes an open data set for a list; of a folder of embeddings, the data embedded there."""
    if isinstance(source, Embeddings):
        return _rows.data_set(source)[1]
    return kept_list.DataSet.of(source, spec, options)


def _common(of: kept_list.DataSet, within: Sequence[str]) -> np.ndarray:
    """The records that all lists keep; ValueError if they are not of this data set."""
    lists = [KeptList(of, np.arange(of.source_records)), *map(kept_list.read, within)]
    return kept_list.common(lists, [of.data, *within])


def score_records(source: Embeddings, captions: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the records that have captions, int64 [N], and their scores, float64 [N].

    Args:
        source: the embeddings of images and captions.
        captions: how scores of several captions become one, one of CAPTIONS.
    """
    records, scores = [], []
    shards = zip(source.blocks(), _rows.entries(source), strict=True)
    for (_, shard, images), entries in shards:
        entries, places = entries[entries[:, 3] > 0], np.flatnonzero(entries[:, 3])
        if not len(entries):
            continue
        texts = similarity.unit(source.load(text_file, shard))
        images = similarity.unit(images[places])
        firsts, counts = entries[:, 2], entries[:, 3]
        cosines = similarity.of_pairs(np.repeat(images, counts, axis=0), texts)
        if captions == 'first':
            found = cosines[firsts]
        elif captions == 'best':
            found = np.maximum.reduceat(cosines, firsts)
        else:
            found = np.add.reduceat(cosines, firsts) / counts
        records.append(entries[:, 0])
        scores.append(found)
    if not records:
        raise ValueError(f'{source}: no record has a caption to compare with its image')
    return np.concatenate(records), np.concatenate(scores)


def choose(scores: np.ndarray, rule: Rule) -> np.ndarray:
    """Returns which scores [N] a rule keeps, bool [N]."""
    if rule.min_score is not None:
        return scores >= rule.min_score
    assert rule.keep is not None  # a rule has one of both
    wanted = int(rule.keep * len(scores) + 1e-6)  # 0.29 * 100 is a little less than 29
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind='stable')[:wanted]] = True
    return chosen


def _written(
    kept: KeptList,
    folder: epath.Path,
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
    scores: np.ndarray | None,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        'settings': dict(settings),
        'counts': {**counts, 'kept': len(kept.records)},
        'kept_share': len(kept.records) / counts.get('scored', counts['records']),
    }
    if scores is not None and kept.scores is not None:
        quantiles = {f'{100 * q:g} %': float(np.quantile(scores, q)) for q in (0.05, 0.5, 0.95)}
        bins, edges = np.histogram(scores, BINS)
        report |= {
            'lowest_kept_score': float(kept.scores.min()),
            'mean_score': float(scores.mean()),
            'mean_kept_score': float(kept.scores.mean()),
            'score_quantiles': quantiles,
            'histogram': {'edges': edges.tolist(), 'counts': bins.tolist()},
        }
    kept.write(folder / KEPT)
    atomic.write_json(folder / REPORT, report)
    return report
