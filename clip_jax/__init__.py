"""CLIP in JAX and Flax: `clip_jax.load(path)` gives a model that embeds and classifies."""

__version__ = '0.1.0'

_PUBLIC = {
    'Preempted': 'clip_jax.runtime.preemption',
    'interpolate': 'clip_jax.training.interpolation',
    'load': 'clip_jax.pretrained',
    'train': 'clip_jax.training.loop',
    'Clip': 'clip_jax.pretrained',
    'image_features': 'clip_jax.models.features',
    'text_features': 'clip_jax.models.features',
    'search': 'clip_jax.embeddings.search',
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str):
    # JAX and the rest are imported only when something of them is used, so that `clip-jax --help`
    # is quick.
    if name not in _PUBLIC:
        raise AttributeError(f'module clip_jax has no attribute {name!r}; public names: {__all__}')
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
