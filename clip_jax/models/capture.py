"""What encoders store of their inside, for whoever makes a collection of it mutable.

`encoder.apply(variables, images, mutable=[FEATURES])` returns what was stored beside the result;
without `mutable` nothing is stored or computed.
"""

import flax.linen as nn
import jax

FEATURES = 'features'  # the collection of outputs before pooling
ATTENTION = 'attention'  # the collection of attention weights


def wanted(module: nn.Module, collection: str) -> bool:
    """Whether a collection is captured in this call of a module."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def keep(module: nn.Module, name: str, value: jax.Array) -> None:
    """Stores features of an encoder, if they are captured.

    Args:
        module: the encoder.
        name: 'patches' of an image encoder, 'tokens' of a text encoder.
        value: [B, L, width], or [B, H, W, width] for patches; all of them, before pooling.
    """
    if wanted(module, FEATURES):
        module.sow(FEATURES, name, value)
