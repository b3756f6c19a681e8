"""NaFlex: padding, positions of any grid, patches of any size, and meshes."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_variables

from clip_jax import sharding
from clip_jax.data import patches
from clip_jax.data.patches import Patches
from clip_jax.models import clip, positions
from clip_jax.models.image import naflex

FIELDS = {'image_size': 12, 'patch_size': 4, 'width': 16, 'depth': 1, 'heads': 2, 'mlp_dim': 24}
GRIDS = ((2, 3), (1, 7), (8, 1), (2, 4), (1, 1), (4, 2), (2, 2), (3, 2))


def encoder(**fields) -> naflex.Encoder:
    return naflex.Encoder(**{**FIELDS, **fields})


def images(most: int, size: int = 4, grids=GRIDS) -> Patches:
    """Random images with these grids; the same whatever the padding."""
    made = patches.blank((len(grids),), most, size)
    pixels = made.pixels.astype(np.float32)
    for i, grid in enumerate(grids):
        rng = np.random.default_rng(i)
        pixels[i, : np.prod(grid)] = rng.normal(size=(np.prod(grid), size, size, 3))
    return Patches(pixels, np.asarray(grids, np.int32))


@functools.partial(jax.jit, static_argnums=0)
def features(model: naflex.Encoder, variables: dict, given: Patches) -> jax.Array:
    return model.apply(variables, given)


@pytest.fixture(scope='module')
def variables() -> dict:
    return random_variables(encoder(), images(8))


def test_padding_changes_nothing_whatever_it_is(variables):
    model, given = encoder(), images(8)
    expected = features(model, variables, given)
    longer = images(11)
    np.testing.assert_allclose(features(model, variables, longer), expected, atol=1e-5)
    hidden = np.arange(11) >= longer.grid.prod(axis=1)[:, None]
    longer.pixels[hidden] = 1e4
    np.testing.assert_allclose(features(model, variables, longer), expected, atol=1e-5)
    longer.pixels[~hidden] += 1
    assert np.abs(features(model, variables, longer) - expected).max() > 1e-2


def test_padding_has_no_gradient_and_real_patches_have(variables):
    given = images(9)

    def total(pixels: jax.Array) -> jax.Array:
        found = encoder().apply(variables, dataclasses.replace(given, pixels=pixels))
        return jnp.sum(found**3)

    gradient = np.abs(jax.jit(jax.grad(total))(given.pixels)).max(axis=(2, 3, 4))
    shown = np.arange(9) < given.grid.prod(axis=1)[:, None]
    assert (gradient[~shown] == 0).all() and (gradient[shown] > 0).all()


def test_an_image_without_patches_which_pads_a_batch_is_finite(variables):
    given = images(8)
    given.grid[0] = 0
    found = features(encoder(), variables, given)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1:], features(encoder(), variables, images(8))[1:], atol=1e-5)


def test_positions_are_jaxs_antialiased_bilinear_resize_of_each_grid():
    side, width = 5, 3
    table = np.random.default_rng(0).normal(size=(side * side, width)).astype(np.float32)
    grids = ((5, 5), (12, 1), (3, 4), (7, 2))
    found = jax.jit(positions.interpolated, static_argnums=2)(table, np.array(grids), 26)
    for one, grid in zip(found, grids, strict=True):
        expected = jax.image.resize(
            table.reshape(side, side, width), (*grid, width), 'linear', antialias=True
        )
        np.testing.assert_allclose(one[: np.prod(grid)], expected.reshape(-1, width), atol=1e-5)
        np.testing.assert_array_equal(one[np.prod(grid) :], [one[0]] * (26 - np.prod(grid)))


def test_larger_patches_have_the_embedding_of_those_they_were_resized_from():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
    patch = rng.normal(size=(4, 4, 3)).astype(np.float32)
    expected = np.einsum('ijc,ijcw->w', patch, kernel)
    for size in 6, 12:
        larger = jax.image.resize(patch, (size, size, 3), 'linear', antialias=False)
        found = np.einsum('ijc,ijcw->w', larger, naflex.resized_kernel(kernel, size))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert naflex.resized_kernel(kernel, 4) is kernel


def test_patches_of_other_sizes_share_all_parameters(variables):
    found = features(encoder(), variables, images(8, size=6))
    assert found.shape == (8, 16) and np.isfinite(found).all()
    shapes = jax.eval_shape(encoder().init, jax.random.key(0), images(8, size=6))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


def test_scan_and_remat_change_no_gradient():
    variables = random_variables(encoder(depth=2), images(8))

    def gradient(model: naflex.Encoder) -> dict:
        def loss(variables: dict) -> jax.Array:
            return jnp.sum(model.apply(variables, images(8)) ** 2)

        return jax.jit(jax.grad(loss))(variables)

    found = gradient(encoder(depth=2, scan=True, remat='full'))
    expected = gradient(encoder(depth=2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


def test_on_a_mesh_features_are_the_same(variables):
    expected, mesh = features(encoder(), variables, images(8)), sharding.make_mesh(fsdp=2, tensor=2)
    model = clip.from_card(
        {
            'image': {'name': 'naflex', **FIELDS},
            'text': {
                **{k: v for k, v in FIELDS.items() if 'size' not in k},
                'name': 'transformer',
                'vocab_size': 8,
                'context_length': 3,
                'pool': 'last',
                'causal': False,
            },
            'embed_dim': 16,
        }
    )
    placed = sharding.of_tree(clip.shapes(model)['params'], mesh, clip.logical_axes(model))['image']
    with jax.set_mesh(mesh):
        params = jax.device_put(variables['params'], placed)
        given = jax.device_put(images(8), sharding.over_batch(mesh))
        found = jax.jit(encoder().apply)({'params': params}, given)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_exported_for_any_number_of_images_and_patches(variables):
    batch, most = jax.export.symbolic_shape('batch, most')
    given = Patches(
        jax.ShapeDtypeStruct((batch, most, 4, 4, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    )
    run = jax.jit(lambda pixels, grid: encoder().apply(variables, Patches(pixels, grid)))
    exported = jax.export.export(run)(given.pixels, given.grid)
    for some in images(8), images(9, grids=GRIDS[:3]):
        expected = features(encoder(), variables, some)
        np.testing.assert_allclose(exported.call(some.pixels, some.grid), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'image_size': 14}, 'image_size is 14; expected a multiple of patch_size 4'),
        ({'heads': 3}, 'width 16 is not a multiple of heads 3'),
        ({'dropout': 1.0}, 'dropout is 1.0'),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        encoder(**fields)


def test_square_images_are_refused(variables):
    with pytest.raises(ValueError, match=r'found images \(2, 12, 12, 3\); expected data.patches'):
        features(encoder(), variables, jnp.zeros((2, 12, 12, 3)))
