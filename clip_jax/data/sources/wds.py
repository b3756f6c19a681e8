"""Evaluation sets as CLIP_benchmark and DataComp publish them, with their class names and
templates: `wds:PLACE[/SPLIT]`.
"""

import os
from collections.abc import Sequence

from clip_jax.data.sources import (
    _tar_files,
    _tar_index,
    _tar_labels,
    _tar_samples,
    _wds_metadata,
    _wds_place,
)
from clip_jax.data.sources._tar_source import Labels, TarSource, Texts
from clip_jax.data.sources._tar_texts import Texts as Captions
from clip_jax.runtime import environment

_IMAGES = ('webp', 'png', 'jpg', 'jpeg')
_EVALUATIONS = {'classification': 'zeroshot', 'multilabel': 'zeroshot', 'retrieval': 'retrieval'}


def source(
    address: str,
    *,
    split: str = '',
    root: str = '',
    columns: Sequence[str] = (),
    group_by: Sequence[str] = (),
    objective: str = '',
) -> 'WdsSource':
    """Opens a split of an evaluation set.

    Args:
        address: the folder of the set or of a split of it: a path, hf://datasets/OWNER/NAME, its
            page https://huggingface.co/datasets/OWNER/NAME/tree/main, or another address that
            fsspec reads.
        split: the split; '': that of the address, or else test.
        root: a folder of copies: hf://datasets/OWNER/NAME is read from NAME in it, and other
            addresses are paths in it.
        columns: the names of the numbers in the .npy member of each sample, as WILDS has them, in
            order, such as region,year,y.
        group_by: columns by whose values images are grouped; the evaluation scores each group.
        objective: for a set with several questions, such as FairFace: the column that is the label,
            whose class names and templates begin with its name and a colon.

    Raises:
        DataNotFound: there is no such set or split.
        ValueError: shards are missing, a file is not as expected, or no sample has an image.
    """
    found = _wds_place.find(address, split, root)
    kind = found.kind()
    meaning = _wds_metadata.Columns(_names(columns), _names(group_by), objective)
    meaning.check()
    arrays = kind == 'multilabel' or bool(objective)
    if kind == 'multilabel' and meaning.names:
        raise ValueError('wds: the .npy members of a multilabel set are its labels, not columns')
    also = ['npy'] if meaning.names and not objective else []
    roles = _tar_samples.roles(_IMAGES, ['txt', *also], 'npy' if arrays else 'cls', [])
    folder = os.path.abspath(environment.cache_folder('tars'))
    where = f'{found.folder}/{found.split}'
    index = _tar_index.open_index(where, found.shards, roles, folder, _tar_files.front_to_back)
    texts: Texts = Captions(['txt'], (), lines=True)
    if also:
        texts = _wds_metadata.Texts(texts, meaning)
    names = [] if kind == 'retrieval' else found.names(objective)
    labels: Labels = _tar_labels.Labels(arrays, names, found.names_file, 'Write it again.')
    if objective:
        labels = _wds_metadata.Labels(names, found.names_file, meaning)
    return WdsSource(
        *(f'wds:{address}', index, texts, labels),
        templates=found.templates(objective),
        evaluation=_EVALUATIONS[kind],
    )


class WdsSource(TarSource):
    """The samples of an evaluation set.

    Attributes:
        label_texts: the class names as they stand in prompts.
        templates: the templates of its prompts, [] if it has none.
        evaluation: the evaluation that the set is for, 'zeroshot' or 'retrieval'.
    """

    def __init__(
        self,
        spec: str,
        index: _tar_index.Index,
        texts: Texts,
        labels: Labels,
        *,
        templates: list[str],
        evaluation: str,
    ):
        super().__init__(spec, index, texts, labels)
        self.label_texts, self.templates, self.evaluation = self.label_names, templates, evaluation


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """The names of columns, which the command line gives as one text."""
    names = given.split(',') if isinstance(given, str) else given
    return tuple(name.strip() if isinstance(name, str) else name for name in names)
