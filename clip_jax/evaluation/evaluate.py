"""One evaluation of one model: data is opened, and a report is made. `clip-jax eval`, suites and
training all make their reports here, so that all have the same keys.
"""

import dataclasses
import functools
import inspect
import time
import typing
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax import build, lookup
from clip_jax.data import sources
from clip_jax.data.sources import Source
from clip_jax.evaluation import dims, encoders
from clip_jax.evaluation.encoders import Load, Model
from clip_jax.models import matryoshka
from clip_jax.runtime import environment


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation with its options and its data, open.

    Attributes:
        settings: what was asked for (see `settings`).
        function: the plug-in's `evaluate` with its options bound, but for those that name data.
        data: the data set that is scored.
        others: further data sets that options name, by option.
        dims: numbers of first coordinates of embeddings that are scored too.
    """

    settings: Mapping[str, Any]
    function: Callable[..., dict[str, Any]]
    data: Source
    others: Mapping[str, Source]
    dims: tuple[int, ...] = ()

    @property
    def sources(self) -> list[Source]:
        """All data sets that it reads; the one that is scored comes first."""
        return [self.data, *self.others.values()]

    def report(
        self,
        clip: Model | None,
        *,
        path: str | None = None,
        load: Load | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Scores a model.

        Args:
            clip: the model, or None where all data are folders of embeddings.
            path: where the model was loaded from.
            load: loads the model that made a folder of embeddings, for texts without an embedding.
            **more: further keys of the report, such as `step`.

        Returns:
            The report: `model`, `type`, `data`, `data_options`, `options`, `scores`, `counts`,
            `info`, the plug-in's own keys, `skipped` (records that the sources skipped),
            `compute_dtype`, `device`, `seconds`, `versions`.

        Raises:
            ValueError: the model does not fit the data, or the plug-in returned no valid report.
        """
        began = time.monotonic()
        encode_image, encode_text = encoders.encoders_for(
            clip, self.sources, path=path or '', load=load
        )
        if self.dims and clip:  # before anything is embedded
            matryoshka.check(max(self.dims), clip.model.embed_dim)
        encode = encode_image, encode_text
        found = dims.evaluate(self.function, self.dims, encode, self.data, self.others)
        _check(self.settings['type'], found)
        skipped = {
            f'{source}: {kind}': found.count
            for source in self.sources
            for kind, found in getattr(source, 'skipped', {}).items()
        }
        return {
            'model': path,
            **self.settings,
            **more,
            'scores': found['scores'],
            'counts': found.get('counts', {}),
            'info': found.get('info', {}),
            **found,
            'skipped': skipped,
            **encoders.provenance(encoders.model_used(clip, encode_text), self.sources),
            'seconds': time.monotonic() - began,
            'versions': environment.versions(),
        }


def prepare(
    type_: str,
    options: Mapping[str, Any],
    spec: str,
    source_options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    embeddings: bool = False,
) -> Evaluation:
    """Checks the options of an evaluation and opens its data.

    Args:
        type_: name of the plug-in, a file of evals/.
        options: its options; those that name data hold a SPEC. None means not set.
        spec: SPEC of the data set to score.
        source_options: options of each kind of source.
        embeddings: whether data may be folders of embeddings.

    Returns:
        The evaluation, ready to score any number of models.

    Raises:
        ValueError: the plug-in, an option or a SPEC is wrong.
    """
    check_options(type_, options)  # before anything is opened
    source_options = source_options or {}
    asked = settings(type_, options, spec, source_options)
    others = {
        name: build.source(one, source_options, embeddings=embeddings)
        for name, one in _specs(type_, options).items()
    }
    own = {k: v for k, v in asked['options'].items() if k != dims.OPTION and k not in others}
    return Evaluation(
        settings=asked,
        function=functools.partial(_function(type_), **own),
        data=build.source(spec, source_options, embeddings=embeddings),
        others=others,
        dims=dims.check(_function(type_), options, lookup.label('evals', type_)),
    )


def made_for(spec: str, source_options: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Returns the name of the evaluation that a data set says it is made for.

    Args:
        spec: SPEC of the data set.
        source_options: options of each kind of source.

    Raises:
        ValueError: the data set does not say, or cannot be opened.
    """
    found = getattr(build.source(spec, source_options or {}, embeddings=True), 'evaluation', '')
    if not found:
        raise ValueError(
            f'{spec} does not say which evaluation it is made for, as wds: sets do; give its name: '
            'clip-jax eval NAME'
        )
    return found


def settings(
    type_: str,
    options: Mapping[str, Any],
    spec: str,
    source_options: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns what a report depends on besides the model: `type`, `data`, `data_options` (those of
    each kind of source that is read) and `options`.
    """
    specs = [spec, *_specs(type_, options).values()]
    kinds = [kind for one in specs for kind in sources.kinds(one)]
    keys = dict.fromkeys(map(sources.option_key, kinds))
    own = {key: build.given(source_options.get(key, {})) for key in keys}
    return {
        'type': type_,
        'data': spec,
        'data_options': {kind: given for kind, given in own.items() if given},
        'options': build.given(options),
    }


def check_options(type_: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError if an evaluation does not take one of the options, or lacks one."""
    what = lookup.label('evals', type_)
    function, given = _function(type_), build.given(options)
    dims.check(function, given, what)
    own = {name: value for name, value in given.items() if name != dims.OPTION}
    build.bind(function, own, what=what, own=3)


def _function(type_: str) -> Callable[..., dict[str, Any]]:
    return lookup.module('evals', type_, 'evaluate').evaluate


def _specs(type_: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The options that name data, those annotated as `Source` or `Source | None`, if they are set;
    ValueError if one is no text.
    """
    function = _function(type_)
    _, _, _, *own = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    names = [name for name in own if Source in (hints.get(name), *typing.get_args(hints.get(name)))]
    found = {name: spec for name, spec in build.given(options).items() if name in names}
    for name, spec in found.items():
        if not isinstance(spec, str):
            what = lookup.label('evals', type_)
            raise ValueError(f'{what}: {name} is {spec!r}; expected a data SPEC')
    return found


def values(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the value of every score of reports by name, as `NAME/SCORE`, its key in the metrics
    of a run.
    """
    return {
        f'{name}/{key}': score['value']
        for name, report in reports.items()
        for key, score in report['scores'].items()
    }


def _check(type_: str, report: Any) -> None:
    """Raises ValueError if a plug-in's report lacks valid scores."""
    scores = report.get('scores') if isinstance(report, Mapping) else None
    if not isinstance(scores, Mapping) or not scores:
        raise ValueError(
            f'{lookup.label("evals", type_)}: the report has no scores; expected '
            "{'scores': {NAME: clip_jax.evals.score(value), ...}, ...}"
        )
    for name, entry in scores.items():
        valid = isinstance(entry, Mapping) and {'value', 'better', 'unit'} <= {*entry}
        if not valid or not isinstance(entry['value'], (int, float)):
            raise ValueError(
                f'{lookup.label("evals", type_)}: score {name} is {entry!r:.80}; expected '
                'clip_jax.evals.score(value) of a number'
            )
