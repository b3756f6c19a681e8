"""Teachers: frozen models, whose embeddings of a batch a student's are brought near.

Either they are on the same mesh and embed each batch, or their embeddings come with it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.data import preprocess
from clip_jax.data.patches import Patches
from clip_jax.models import clip, layers
from clip_jax.step import grad_cache

Targets = dict[str, tuple[jax.Array, jax.Array, jax.Array]]  # image, text and scale by teacher


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model and the loss that compares a student with it.

    Attributes:
        model: the model.
        loss: (student_image, student_text, scale, teacher_image, teacher_text, teacher_scale) ->
            (value, metrics), a loss of clip_jax/distillation.
        weight: factor of the loss in the total.
        mean: the mean that is subtracted from the pixels of red, green and blue.
        std: the standard deviation that they are divided by.
    """

    model: clip.CLIP
    loss: Callable
    weight: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def embed(self, variables: Any, images: Any, tokens: jax.Array) -> tuple:
        """Embeds images, uint8 [B, H, W, 3] or Patches, and token ids [B, L]; returns image, text
        and scale.

        Images of another size than the teacher's are resized as the evaluation does it, by an
        antialiased cubic filter.
        """
        flexible = isinstance(images, Patches)
        if flexible != hasattr(self.model.image, 'example_images'):
            kinds = 'any size (NaFlex)', 'one size'
            raise ValueError(
                f'distillation: the student takes images of {kinds[not flexible]} and a teacher of '
                f'{kinds[flexible]}; expected models of the same kind'
            )
        size = self.model.image.image_size
        if not flexible and images.shape[1:3] != (size, size):
            shape = (len(images), size, size, images.shape[-1])
            resized = jax.image.resize(images.astype(jnp.float32), shape, 'cubic')
            images = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
        params = layers.cast(variables['params'], self.model.dtype, clip.logical_axes(self.model))
        pixels = preprocess.normalize(images, mean=self.mean, std=self.std)
        found: Any = self.model.apply({**variables, 'params': params}, pixels, tokens)
        return found[:3]


@dataclasses.dataclass(frozen=True)
class StoredTeacher:
    """A model whose embeddings of the data are stored, and the loss that compares a student.

    Attributes:
        loss: see Teacher.
        weight: factor of the loss in the total.
        scale: factor of the model's cosine similarities.
    """

    loss: Callable
    weight: float
    scale: float


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The teachers of a run.

    Attributes:
        contrastive: factor of the contrastive loss in the total; 0: the teachers stand alone.
        by_name: the teachers, by a name of the user's choice.
    """

    contrastive: float = 1.0
    by_name: Mapping[str, Teacher | StoredTeacher] = dataclasses.field(default_factory=dict)

    def targets(self, variables: Mapping[str, Any], batch: dict, microbatches: int) -> Targets:
        """Returns the teachers' embeddings of a batch, computed in as many parts as the student's.

        Args:
            variables: the variables of each teacher that embeds, by name.
            batch: {'image': uint8 [B, H, W, 3], 'tokens': int32 [B, L] or [B, K, L], of which the
                first text counts}; 'stored' has the embeddings of the others by name.
            microbatches: the number of parts.
        """
        tokens = batch['tokens']
        inputs = batch['image'], tokens if tokens.ndim == 2 else tokens[:, 0]
        embedding = {k: x for k, x in self.by_name.items() if isinstance(x, Teacher)}
        targets = {
            name: (*(batch['stored'][name][x] for x in ('image', 'text')), jnp.float32(one.scale))
            for name, one in self.by_name.items()
            if isinstance(one, StoredTeacher)
        }
        if not embedding:
            return targets

        def embed(part: tuple) -> Targets:
            return {name: x.embed(variables[name], *part) for name, x in embedding.items()}

        if microbatches == 1:
            return targets | embed(inputs)

        found = lax.map(embed, grad_cache.split(inputs, microbatches))
        return targets | {
            name: (*grad_cache.join((image, text)), scale[0])
            for name, (image, text, scale) in found.items()
        }

    def distilled(self, loss: Callable, targets: Targets) -> Callable:
        """Returns a contrastive loss to which the teachers' losses are added.

        Args:
            loss: (image, text, scale, bias, **others) -> (value, metrics); `text` is [B, D], or
                [B, P, D], of which the first caption is compared with the teacher's.
            targets: what `targets` returned.

        Returns:
            Such a loss that also takes, after `bias`, the projections of the student's embeddings,
            by teacher.
        """

        def total(
            image: jax.Array,
            text: jax.Array,
            scale: jax.Array,
            bias: jax.Array | None,
            projections: Mapping[str, Any] = MappingProxyType({}),
            **others: jax.Array,
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            contrastive, metrics = loss(image, text, scale, bias, **others)
            value = self.contrastive * contrastive if self.contrastive else 0.0
            metrics = {**metrics, 'contrastive': contrastive}
            first = text if text.ndim == 2 else text[:, 0]
            for name, teacher in self.by_name.items():
                student = {'image': image, 'text': first}
                for side, projection in projections.get(name, {}).items():
                    student[side] = project(student[side], projection['kernel'])
                of_image, of_text, of_scale = targets[name]
                one, _ = teacher.loss(*student.values(), scale, of_image, of_text, of_scale)
                value += teacher.weight * one
                metrics[f'teacher/{name}'] = one
            return jnp.asarray(value), metrics

        return total


def project(embeddings: jax.Array, kernel: jax.Array) -> jax.Array:
    """Projects embeddings [B, D] by a matrix [D, E], L2-normalized again: float32 [B, E]."""
    embeddings = embeddings.astype(jnp.float32)
    return clip.l2_normalize(jnp.matmul(embeddings, kernel, precision=lax.Precision.HIGHEST))
