"""What a folder of embeddings holds of captions: embeddings, other features, or texts alone."""

from collections.abc import Sequence

import numpy as np

from clip_jax.models import matryoshka
from clip_jax.pretrained import Clip

NONE = 'none'  # texts alone


def kind(clip: Clip, text_features: str, features: str) -> str:
    """Returns what is stored of captions, as `Clip.encode_text` names it, or 'none'.

    Args:
        clip: the model.
        text_features: what was asked for; '': 'embedding' beside embeddings of images, if the model
            has a tokenizer, else 'none'.
        features: what is stored of images.

    Raises:
        ValueError: the model has no tokenizer, or its text encoder no such features.
    """
    default = 'embedding' if features == 'embedding' and clip.tokenizer else NONE
    found = text_features or default
    if found != NONE and clip.tokenizer is None:
        raise ValueError(
            f'--text-features is {found}, and the model has no tokenizer; add its file next to the '
            'weights, or give --text-features=none'
        )
    shape(clip, found, 0)  # ValueError before anything is written
    return found


def shape(clip: Clip, features: str, dim: int) -> list[int]:
    """Returns the shape of what is stored of a caption; [] if that is 'none'.

    Args:
        clip: the model.
        features: what is stored (see `kind`).
        dim: the number of first coordinates of embeddings; 0: all.
    """
    if features == NONE:
        return []
    if features == 'embedding' and dim:
        return [dim]
    return list(clip.text_feature_shape(features))


def rows(clip: Clip, texts: Sequence[str], features: str, dim: int) -> np.ndarray:
    """Computes what is stored of captions, float32 [N, ...]; of equal ones once.

    Args:
        clip: the model.
        texts: the captions.
        features: what is stored (see `kind`).
        dim: the number of first coordinates of embeddings; 0: all.
    """
    if features == NONE or not texts or clip.tokenizer is None:
        return np.zeros((0, *shape(clip, features, dim)), np.float32)
    index = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    tokens = clip.tokenizer(list(index))
    # Padded to full batches, whose size must not depend on the number of texts.
    padding = -len(tokens) % clip.batch_size
    found = clip.encode_text(np.pad(tokens, [(0, padding), (0, 0)]), features=features)
    if features == 'embedding':
        found = matryoshka.first(found, dim or None)
    return found[[index[text] for text in texts]]
