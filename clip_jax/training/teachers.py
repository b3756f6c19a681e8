"""The teachers of a run: from a config to models, losses and variables."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import build, lookup, sharding
from clip_jax.data.stored_embeddings import StoredEmbeddings
from clip_jax.models import clip
from clip_jax.step.teachers import StoredTeacher, Teacher, Teachers

OWN = ('path', 'embeddings', 'loss', 'weight')  # keys of a teacher that are not options of its loss
INPUTS = 6  # the first parameters of a loss; see distillation/__init__.py


class Prepared(NamedTuple):
    """The teachers of a run, and what they need."""

    teachers: Teachers | None  # None: there are none
    variables: dict[str, Any]  # of those that embed, by name, sharded over the mesh
    stored: dict[str, StoredEmbeddings]  # the folders of the others, by name
    projected: dict[str, tuple[int, int]]  # to whose embeddings the student's are projected


def prepare(
    config: Mapping[str, Any],
    dtype: str,
    card: Mapping[str, Any],
    mesh: Mesh,
    read: Callable[[str, Mesh], tuple[dict, dict]],
) -> Prepared:
    """Loads the teachers of a config.

    Args:
        config: `contrastive`, the weight of the contrastive loss, and `teachers`: by name `path` or
            `embeddings`, `loss`, `weight` and options of that loss.
        dtype: the compute dtype, as for build.model.
        card: the card of the student; without `tokenizer`, that of a teacher is not checked.
        mesh: the device mesh.
        read: pretrained.read; for a plan, a function that returns shapes in place of variables.

    Raises:
        ValueError: a checkpoint, a folder, a loss or an option is not usable, or a teacher has
            another tokenizer than the student.
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
        return Prepared(None, {}, {}, {})
    own = card['model']['embed_dim']
    found, variables, stored, projected = {}, {}, {}, {}
    for name, options in config['teachers'].items():
        what = f'distillation.teachers.{name}'
        _check_keys(what, options)
        weight = options.get('weight', 1.0)
        if options.get('embeddings'):
            one = stored[name] = StoredEmbeddings(options['embeddings'], what)
            size = one.width
            found[name] = StoredTeacher(_loss(what, options, mesh, own, size), weight, one.scale)
        else:
            of_teacher, arrays = read(options['path'], mesh)
            if 'tokenizer' in card:
                _check_tokenizer(what, of_teacher, card)
            model = build.model(of_teacher['model'], dtype)
            if len(model.towers) < 2:
                raise ValueError(f'{what}: has one encoder; expected a teacher of images and texts')
            size = model.embed_dim
            loss = _loss(what, options, mesh, own, size)
            statistics = (tuple(of_teacher['preprocess'][x]) for x in ('mean', 'std'))
            found[name] = Teacher(model, loss, weight, *statistics)
            shardings = sharding.of_tree(arrays, mesh, clip.logical_axes(model))
            variables[name] = jax.tree.map(_placed, arrays, shardings)
        if _needs_same_size(options) and size != own:
            projected[name] = own, size
    return Prepared(Teachers(config['contrastive'], found), variables, stored, projected)


def _placed(x: Any, where: jax.sharding.Sharding) -> Any:
    """An array, or its shape in a plan, with its sharding."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.device_put(x, where)


def _check_keys(what: str, options: Mapping[str, Any]) -> None:
    if not options.get('loss'):
        raise ValueError(f'{what}: loss must be given')
    sources = [key for key in ('path', 'embeddings') if options.get(key)]
    if len(sources) != 1:
        raise ValueError(
            f'{what}: has {" and ".join(sources) or "neither path nor embeddings"}; expected one: '
            'path, a checkpoint, or embeddings, a folder that clip-jax embed wrote over the '
            'training data'
        )


def _loss(
    what: str, options: Mapping[str, Any], mesh: Mesh, of_student: int, of_teacher: int
) -> Callable:
    """The loss of a teacher, traced once so that wrong options raise here; where it needs
    embeddings of the same size, the student's will be projected.
    """
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

    teacher = embeddings(of_teacher)
    student = teacher if _needs_same_size(options) else embeddings(of_student)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.eval_shape(bound, student, student, number, teacher, teacher, number)
    except ValueError as error:
        raise ValueError(f'{what}: {error}') from error
    return bound


def _needs_same_size(options: Mapping[str, Any]) -> bool:
    return getattr(lookup.module('distillation', options['loss'], 'loss'), 'SAME_SIZE', False)


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
