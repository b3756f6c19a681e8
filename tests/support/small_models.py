"""Small models of every kind that a layout holds, and tokenizers for them."""

import functools
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
import tokenizers as library

from clip_jax.data.preprocess import Preprocess
from clip_jax.models import clip

SMALL = {'width': 32, 'depth': 2, 'heads': 2, 'mlp_dim': 52}
VIT = {'name': 'vit', 'image_size': 32, 'patch_size': 16, **SMALL}
TEXT = {'name': 'transformer', 'vocab_size': 60, 'context_length': 9, **SMALL, 'width': 24}
SIGLIP = {
    'image': {**VIT, 'pool': 'map', 'pre_norm': False, 'patch_bias': True},
    'text': {**TEXT, 'pool': 'last', 'causal': False},
    'embed_dim': 32,
    'image_proj': 'none',
    'text_proj': 'biased',
    'init_logit_bias': -10.0,
}
for tower in ('image', 'text'):
    SIGLIP[tower] |= {'activation': 'gelu_tanh', 'norm_eps': 1e-6}
CLIP = {'image': VIT, 'text': {**TEXT, 'pool': 'argmax'}, 'embed_dim': 20}
EOT = {**CLIP, 'text': {**TEXT, 'pool': 'eot', 'eot_id': 7}}
QUICK = {
    **CLIP,
    'image': {**VIT, 'width': 64, 'heads': 1, 'activation': 'quick_gelu'},
    'text': {**TEXT, 'width': 64, 'heads': 1, 'pool': 'argmax', 'activation': 'quick_gelu'},
}
RESNET = {
    **QUICK,
    'image': {'name': 'resnet', 'image_size': 64, 'width': 4, 'depths': [1, 2, 1, 1], 'heads': 2},
    'image_proj': 'biased',
}
NAFLEX = {**SIGLIP, 'image': {**VIT, 'name': 'naflex', 'activation': 'gelu_tanh', 'norm_eps': 1e-6}}
MODELS = {
    'clip': CLIP,
    'eot': EOT,
    'metaclip_2': {**CLIP, 'text': {**TEXT, 'pool': 'eot', 'eot_id': 2}},
    'quick': QUICK,
    'resnet': RESNET,
    'siglip': SIGLIP,
    'naflex': NAFLEX,
    'chinese_clip': {
        **CLIP,
        'image': {**VIT, 'activation': 'quick_gelu'},
        'text': {
            'name': 'bert',
            **SMALL,
            'vocab_size': 60,
            'context_length': 9,
            'pad_id': 0,
            'numbering': 'all',
            'token_types': 2,
            'pool': 'cls',
            'norm_eps': 1e-12,
        },
    },
    'tipsv2': {
        'image': {
            'name': 'rope_vit',
            'image_size': 32,
            'patch_size': 16,
            **SMALL,
            'registers': 1,
            'key_bias': True,
            'layer_scale': 1.0,
        },
        'text': {
            'name': 'nllb',
            **SMALL,
            'vocab_size': 60,
            'context_length': 9,
            'pad_id': 0,
            'numbering': 'all',
            'pool': 'mean',
        },
        'embed_dim': 32,
        'image_proj': 'none',
        'text_proj': 'none',
    },
    'clipa': {
        **CLIP,
        'image': {
            **VIT,
            'pool': 'mean',
            'class_token': True,
            'pre_norm': False,
            'norm_after_pool': True,
        },
        'text': {**TEXT, 'pool': 'last', 'causal': False},
    },
    'scaled': {
        **CLIP,
        'image': {**VIT, 'layer_scale': 0.1, 'norm_eps': 1e-6, 'patch_dropout': 0.5},
        'text': {**TEXT, 'pool': 'argmax', 'layer_scale': 0.1, 'activation': 'gelu_tanh'},
        'init_logit_bias': -3.0,
    },
}


def made(name: str, **card) -> tuple[dict, dict]:
    """Returns the card of one of the models, with changed fields, and random variables."""
    fields, variables = _made(name)
    # A caller may change the dicts; the arrays are read-only.
    return {**json.loads(fields), **json.loads(json.dumps(card))}, jax.tree.map(
        lambda x: x, variables
    )


@functools.cache
def _made(name: str) -> tuple[str, dict]:
    model = clip.from_card(MODELS[name])
    rng = np.random.default_rng(0)

    def random(x: jax.ShapeDtypeStruct) -> np.ndarray:
        array = rng.normal(0.5, 0.2, x.shape).astype(np.float32)
        array.flags.writeable = False
        return array

    variables = jax.tree.map(random, clip.shapes(model))
    if name == 'tipsv2':  # whose file has its inverse exponential, which is exact from 1 on
        variables['params']['logit_scale'] = np.float32(model.init_logit_scale)
    square = name.startswith(('siglip', 'tips'))
    rule = {'resize': 'squash' if square else 'shortest'}
    rule = getattr(model.image, 'preprocess', rule)
    preprocess = Preprocess(model.image.image_size, **rule)
    fields = {'model': clip.to_card(model), 'preprocess': preprocess.card, 'tokenizer': None}
    return json.dumps(fields), variables


def random_variables(model: nn.Module, *inputs: jax.Array) -> dict:
    """Returns random variables of a module; of a CLIP model without inputs."""
    # To compile `init` takes longer than most tests.
    shapes = (
        jax.eval_shape(model.init, jax.random.key(0), *inputs) if inputs else clip.shapes(model)
    )
    rng, constants = np.random.default_rng(0), {'scale': 1, 'var': 1, 'bias': 0, 'mean': 0}

    def random(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        constant = constants.get(path[-1].key)
        made = rng.normal(0, 0.2, x.shape) if constant is None else np.full(x.shape, constant)
        return jnp.asarray(made, x.dtype)

    return jax.tree.map_with_path(random, shapes)


@functools.cache
def pieces() -> bytes:
    """A SentencePiece model of 60 pieces without a start token, as SigLIP's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['a red circle on a blue square'] * 50 + ['two green stars'] * 50),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def byte_pieces(rule: str = 'nmt_nfkc', symbols: str = '') -> bytes:
    """A SentencePiece model of TIPS's kind: merges, and bytes for unknown characters.

    Args:
        rule: the name of the rules of normalization.
        symbols: texts that are tokens wherever they stand, with commas between them.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['a red circle on a blue square'] * 50 + ['two green stars é'] * 50),
        model_writer=model,
        model_type='bpe',
        byte_fallback=True,
        vocab_size=320,
        normalization_rule_name=rule,
        user_defined_symbols=symbols,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=3,
        minloglevel=2,
    )
    return model.getvalue()


def words_json(post: str = '$A </s>') -> str:
    made = library.Tokenizer(
        library.models.WordLevel({'<pad>': 0, '</s>': 1, '<unk>': 2, 'a': 3, 'cat': 4}, '<unk>')
    )
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.add_special_tokens(['<pad>', '</s>'])
    if post:
        made.post_processor = library.processors.TemplateProcessing(
            single=post, special_tokens=[('</s>', 1)]
        )
    return made.to_str()
