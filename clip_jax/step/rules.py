"""How each parameter is trained: rules by its path, layer-wise rates, and locked towers."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from clip_jax import lookup, sharding
from clip_jax.runtime.messages import first_few

# Parameters with weight decay: all but gains, biases and the logit scale (arXiv 2103.00020, section
# 2.5).
DECAYED = ('kernel', 'embedding', 'class_embedding', 'position_embedding', 'probe')
KEYS = ('path', 'frozen', 'lr_mult', 'weight_decay', 'schedule', 'unfreeze_at')
TOWERS = ('image', 'text')
LORA = 'lora'  # the adapters among the parameters, under the path of their matrix; see lora.py
DISTILLATION = 'distillation'  # projections to teachers among them; see projections.py
FREEZE = ('lock_image', 'lock_text', 'lit', 'projections_only')
# The names in a path that number the blocks of an encoder. What is before the blocks in the
# computation has the names of _BEFORE; the last norm, pooling and the projection come after them.
_NUMBER = re.compile(r'(?:stage|block)_(\d+)/')
_BEFORE = ('stem', 'patch_embedding', 'pre_norm', 'token_embedding')
_BEFORE += ('class_embedding', 'position_embedding')


class Setting(NamedTuple):
    """How one parameter is trained."""

    trained: bool
    lr_mult: float  # factor of the learning rate
    weight_decay: float
    schedule: optax.Schedule | None  # its own step -> learning rate; None: the optimizer's
    unfreeze_at: int  # updates before this one leave it as it is


Settings = dict[str, Setting]  # by path, with slashes


def adapted(path: str) -> str:
    """Returns the path of the matrix that an adapter belongs to; another path as it is."""
    return path.removeprefix(f'{LORA}/').rpartition('/')[0] if path.startswith(f'{LORA}/') else path


def paths(params: Any) -> dict[str, Any]:
    """Returns the leaves of a tree of parameters by path, with slashes between names."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {sharding.path_name(path): x for path, x in leaves}


def resolve(
    params: Any,
    *,
    weight_decay: float,
    rules: Sequence[Mapping[str, Any]] = (),
    freeze: Sequence[str] = (),
    layer_decay: Mapping[str, float] | None = None,
    schedule: Callable[[Mapping[str, Any]], optax.Schedule],
) -> Settings:
    """Decides how each parameter is trained.

    If there are adapters (LORA), all other parameters of the model are frozen before any rule
    applies.

    Args:
        params: the parameters, or their shapes.
        weight_decay: of parameters whose name is in DECAYED, and of their adapters; others have
            none.
        rules: mappings with `path`, a regular expression for whole paths, and any of the other
            KEYS. All rules that match a parameter apply; what a later one sets wins.
        freeze: short names for the usual rules, which apply first: 'lock_image' and 'lock_text'
            freeze a tower with its projection, 'lock_image:N' all but its last N blocks and what
            follows them; 'lit' is 'lock_image' (arXiv 2111.07991); 'projections_only' freezes all
            but the projections, the logit scale and bias.
        layer_decay: tower -> factor of the learning rate from a block to the one before it. What
            follows the last block has the factor 1 (BEiT, arXiv 2106.08254, appendix).
        schedule: options of a schedule -> the schedule.

    Returns:
        A setting for each parameter.

    Raises:
        ValueError: a rule that matches nothing or says nothing, an unknown key or name, or nothing
            is left to train.
    """
    names = [*paths(params)]
    found: dict[str, dict[str, Any]] = {
        name: {
            'frozen': False,
            'lr_mult': 1.0,
            'weight_decay': weight_decay if adapted(name).split('/')[-1] in DECAYED else 0.0,
            'schedule': None,
            'unfreeze_at': 0,
        }
        for name in names
    }
    expanded: list[dict[str, Any]] = []
    if LORA in params:
        expanded.append({'path': f'(?!{LORA}/|{DISTILLATION}/).*', 'frozen': True})
    expanded += [rule for name in freeze for rule in _frozen_by(name, names)]
    for rule in [*expanded, *(_checked(i, dict(rule)) for i, rule in enumerate(rules))]:
        matched = [name for name in names if re.fullmatch(rule['path'], name)]
        if not matched:
            raise ValueError(
                f'optimizer.rules: {rule["path"]!r} matches no parameter; paths are such as '
                f'{first_few(shown(names), 6)}'
            )
        for name in matched:
            found[name] |= {k: v for k, v in rule.items() if k != 'path'}
    own: dict[str, optax.Schedule] = {}  # one for each description, not for each parameter
    for values in found.values():
        if values['schedule'] is not None:
            key = repr(sorted(values['schedule'].items()))
            own[key] = own.get(key) or schedule(values['schedule'])
            values['schedule'] = own[key]
    factors = _layer_factors(names, layer_decay or {})
    settings = {
        name: Setting(
            trained=not values['frozen'],
            lr_mult=values['lr_mult'] * factors[name],
            weight_decay=values['weight_decay'],
            schedule=values['schedule'],
            unfreeze_at=values['unfreeze_at'],
        )
        for name, values in found.items()
    }
    if not any(x.trained for x in settings.values()):
        raise ValueError('optimizer: every parameter is frozen; expected rules that leave some')
    return settings


def shown(names: Iterable[str]) -> list[str]:
    """Returns the paths of one block instead of all, which is enough for a message."""
    return [name for name in names if not re.search(r'block_(?!0/)\d+/', name)]


def _checked(number: int, rule: dict[str, Any]) -> dict[str, Any]:
    what = f'optimizer.rules[{number}]'
    for key in rule:
        lookup.check(key, KEYS, what=what)
    rule = {k: v for k, v in rule.items() if v is not None}
    path = rule.get('path')
    if not isinstance(path, str):
        raise ValueError(f'{what}: path must be given, a regular expression for whole paths')
    try:
        re.compile(path)
    except re.error as error:
        raise ValueError(f'{what}: {path!r} is no regular expression: {error}') from None
    others = [*rule.keys() - {'path'}]
    if not others:
        raise ValueError(f'{what}: {path!r} says nothing; expected one of {", ".join(KEYS[1:])}')
    if rule.get('frozen') and len(others) > 1:
        raise ValueError(
            f'{what}: {path!r} is frozen, so that {", ".join(sorted({*others} - {"frozen"}))} '
            'would have no effect'
        )
    for key in ('lr_mult', 'weight_decay', 'unfreeze_at'):
        value = rule.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f'{what}: {key} is {value!r}; expected a number, at least 0')
    if not hasattr(rule.get('schedule', {}), 'items'):
        raise ValueError(f"{what}: schedule is {rule['schedule']!r}; expected {{'name': …}}")
    return rule


def _frozen_by(name: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rules that a short name stands for."""
    short, colon, count = name.partition(':')
    lookup.check(short, FREEZE, what='optimizer.freeze')
    if short == 'projections_only':
        if colon:
            raise ValueError(f'optimizer.freeze: {name!r}; projections_only takes no number')
        return [{'path': f'({LORA}/)?(image|text)/.*', 'frozen': True}]
    tower = 'text' if short == 'lock_text' else 'image'
    if not colon:
        of_tower = (f'{tower}/', f'{tower}_projection/')
        held = [name for name in names if adapted(name).startswith(of_tower)]
        return [{'path': re.escape(n), 'frozen': True} for n in held]
    layers, depth = _layers(names, tower)
    if not count.isdigit() or not 1 <= int(count) <= depth:
        raise ValueError(
            f'optimizer.freeze: {name!r}; expected {short}:N, with 1 to {depth} blocks'
        )
    first = depth - int(count)
    held = [name for name, layer in layers.items() if layer <= first]
    return [{'path': re.escape(n), 'frozen': True} for n in held]


def _layers(names: Iterable[str], tower: str) -> tuple[dict[str, int], int]:
    """The layer of each parameter of an encoder, and the number of its blocks.

    A layer is 0 for what is before the blocks, 1 for the first block, and one more than there are
    blocks for what follows them.
    """
    inside = {name: _block(name) for name in names if adapted(name).startswith(f'{tower}/')}
    places = {block: i for i, block in enumerate(sorted({*inside.values()} - {()}), start=1)}

    def layer(name: str, block: tuple[int, ...]) -> int:
        if block:
            return places[block]
        return 0 if {*adapted(name).split('/')[1:2]} & {*_BEFORE} else len(places) + 1

    return {name: layer(name, block) for name, block in inside.items()}, len(places)


def _block(name: str) -> tuple[int, ...]:
    """The numbers in a path, such as (stage, block); () outside of the blocks."""
    return tuple(map(int, _NUMBER.findall(name)))


def _layer_factors(names: Sequence[str], layer_decay: Mapping[str, float]) -> dict[str, float]:
    factors = dict.fromkeys(names, 1.0)
    for tower, decay in layer_decay.items():
        lookup.check(tower, TOWERS, what='optimizer.layer_decay')
        if not 0 < decay <= 1:
            raise ValueError(
                f'optimizer.layer_decay.{tower} is {decay}; expected more than 0, at most 1'
            )
        layers, depth = _layers(names, tower)
        factors |= {name: decay ** (depth + 1 - layer) for name, layer in layers.items()}
    return factors


def split(params: Mapping[str, Any], settings: Settings) -> tuple[dict, dict]:
    """Splits nested parameters into those that are trained and those that are frozen."""

    def part(tree: Mapping[str, Any], prefix: str, trained: bool) -> dict:
        kept = {}
        for name, value in tree.items():
            path = f'{prefix}{name}'
            if isinstance(value, Mapping):
                if inside := part(value, f'{path}/', trained):
                    kept[name] = inside
            elif settings[path].trained == trained:
                kept[name] = value
        return kept

    return part(params, '', True), part(params, '', False)


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict:
    """Joins what `split` made of a tree, in the order of its names."""
    merged = {}
    for name in sorted({*trained, *frozen}):
        if name in trained and name in frozen:
            merged[name] = merge(trained[name], frozen[name])
        else:
            merged[name] = trained[name] if name in trained else frozen[name]
    return merged


def update(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict:
    """Returns a tree in which the leaves of `others` replace those of `params`."""
    return {
        name: value
        if name not in others
        else update(value, others[name])
        if isinstance(value, Mapping)
        else others[name]
        for name, value in params.items()
    }


def table(params: Any, settings: Settings, schedule: optax.Schedule, peak_at: int) -> str:
    """Returns a table of what is trained: groups of parameters with counts, rates and decay.

    Args:
        params: the parameters, or their shapes.
        settings: how each is trained.
        schedule: the optimizer's own step -> learning rate.
        peak_at: the step at the end of the warmup, whose learning rate is shown.
    """
    groups: dict[tuple, list[int]] = {}
    for name, x in paths(params).items():
        one = settings[name]
        found = (one.schedule or schedule)(max(peak_at, one.unfreeze_at))
        rate = float(np.asarray(found)) * one.lr_mult
        form = rf'^((?:{LORA}/)?(?:image|text)/(?:.*(?:block|stage)_\d+|[^/]*)).*'
        form = form if one.lr_mult != 1 else f'^((?:{LORA}/)?[^/]*).*'
        place = re.sub(form, r'\1', name)
        key = (place, rate, one.weight_decay, one.unfreeze_at) if one.trained else (place,)
        groups.setdefault(key, []).append(int(np.prod(x.shape)))
    rows: list[tuple[str, ...]] = [
        ('parameters', 'arrays', 'numbers', 'learning rate', 'weight decay', 'from step')
    ]
    for key, sizes in groups.items():
        how = (f'{key[1]:.3g}', f'{key[2]:g}', f'{key[3]:,}') if key[1:] else ('frozen', '-', '-')
        rows.append((key[0], f'{len(sizes):,}', f'{sum(sizes):,}', *how))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    trained = sum(sum(sizes) for key, sizes in groups.items() if key[1:])
    total = sum(map(sum, groups.values()))
    return '\n'.join([*lines, f'trained: {trained:,} of {total:,} parameters'])
