"""Image encoders. One file is one encoder; see vit.py for an example.

An encoder of your own is a module like these, named in the config by its file here
(`model.image.name='vit'`) or by its import path (`model.image.name='my_package.my_encoder'`):

    class Encoder(nn.Module):  # its fields are the options of config.model.image, with defaults
        image_size: int
        ...
        dtype: jnp.dtype = jnp.float32  # compute dtype
        param_dtype: jnp.dtype = jnp.float32

        def __call__(self, images, *, train=False, example_index=None): ...
        def with_image_size(self, params, image_size): ...

`__call__` maps images, float [B, H, W, 3], normalized by the card's mean and std, to features
[B, width]. With `train=True` it may update variables outside of `params`, such as running
statistics, and use the random stream 'dropout'; `example_index`, int32 [B], are the examples'
positions in the global batch (see layers.example_keys). `with_image_size` returns parameters for
images of another size.

Fields named `remat`, `scan` and `attention` are set by config.model; they say how, not what, is
computed, and are not part of a checkpoint's card. All other fields are: a card has to be JSON, so
they are numbers, strings, booleans or tuples of these.

An encoder that calls `capture.keep(self, 'patches', x)` before pooling has the features 'patches';
submodules named `block_0`, `block_1`, … are the blocks of the features 'block:N' (see features.py).

An encoder of images of any aspect ratio (see naflex.py) has `example_images(count, max_patches,
patch_size)`, the shapes of a batch, and is called with data.patches.Patches.

Optional module attributes:
  VARIANTS: name -> fields, for `model.image.variant`.
  LOGICAL_AXES: end of a parameter's path -> its logical axes, as sharding.RULES names them, for all
    parameters with two or more axes that are not those of models/layers.py.
"""
