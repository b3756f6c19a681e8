"""The teachers of a run: from a config to models, losses and variables."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import build, lookup, sharding
from clip_jax.models import clip
from clip_jax.step.teachers import Teacher, Teachers

OWN = ('path', 'loss', 'weight')  # keys of a teacher that are not options of its loss
INPUTS = 6  # the first parameters of a loss; see distillation/__init__.py


def prepare(
    config: Mapping[str, Any],
    dtype: str,
    card: Mapping[str, Any],
    mesh: Mesh,
    read: Callable[[str, Mesh], tuple[dict, dict]],
) -> tuple[Teachers | None, dict[str, Any]]:
    """Loads the teachers of a config.

    Args:
        config: `contrastive`, the weight of the contrastive loss, and `teachers`: by name `path`,
            `loss`, `weight` and options of that loss.
        dtype: the compute dtype, as for build.model.
        card: the card of the student.
        mesh: the device mesh.
        read: pretrained.read.

    Returns:
        The teachers, None if there are none, and their variables by name, sharded over the mesh.

    Raises:
        ValueError: a checkpoint, a loss or an option is not usable, or a teacher has another
            tokenizer than the student.
    """
    weight = config['contrastive']
    if weight < 0 or (not weight and not config['teachers']):
        raise ValueError(
            f'distillation.contrastive is {weight}; expected a weight above 0, or 0 with teachers'
        )
    if not config['teachers']:
        if weight != 1:
            raise ValueError(
                f'distillation.contrastive is {weight}, and there are no teachers; leave it at 1'
            )
        return None, {}
    found, variables = {}, {}
    for name, options in config['teachers'].items():
        what = f'distillation.teachers.{name}'
        for key in ('path', 'loss'):
            if not options.get(key):
                raise ValueError(f'{what}: {key} must be given')
        of_teacher, arrays = read(options['path'], mesh)
        _check_tokenizer(what, of_teacher, card)
        model = build.model(of_teacher['model'], dtype)
        found[name] = Teacher(
            model=model,
            loss=_loss(what, options, mesh, card['model']['embed_dim'], model.embed_dim),
            weight=options.get('weight', 1.0),
            mean=tuple(of_teacher['preprocess']['mean']),
            std=tuple(of_teacher['preprocess']['std']),
        )
        shardings = sharding.of_tree(arrays, mesh, clip.logical_axes(model))
        variables[name] = jax.tree.map(jax.device_put, arrays, shardings)
    return Teachers(contrastive=weight, by_name=found), variables


def _loss(
    what: str, options: Mapping[str, Any], mesh: Mesh, of_student: int, of_teacher: int
) -> Callable:
    """The loss of a teacher, traced once so that wrong options raise here."""
    module = lookup.module('distillation', options['loss'], 'loss')
    bound = build.bind(
        module.loss,
        build.given(options, *OWN),
        what=what,
        own=INPUTS,
        passed={'mesh': mesh, 'axis': mesh.axis_names},
    )

    def embeddings(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((mesh.size, size), jnp.float32)

    student, teacher = embeddings(of_student), embeddings(of_teacher)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.eval_shape(bound, student, student, number, teacher, teacher, number)
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from error
    return bound


def _check_tokenizer(what: str, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> None:
    one, other = teacher['tokenizer'] or {}, student['tokenizer']
    wrong = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if wrong:
        shown = ', '.join(
            f'{key} is {one.get(key)!r:.40} there, {other.get(key)!r:.40} here' for key in wrong[:2]
        )
        raise ValueError(
            f'{what}: its tokenizer is not the one of the student ({shown}); expected a teacher '
            'that reads the same tokens'
        )
