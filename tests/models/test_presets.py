"""Architectures by name have the sizes that were published."""

import pytest

from clip_jax import build
from clip_jax.convert import _hf_text, _timm_vit
from clip_jax.models import clip, presets
from clip_jax.step import state

# Counted by open_clip 3.3.0 in its own models of these names.
PARAMETERS = {
    'RN50': 102_007_137,
    'RN101': 119_688_033,
    'RN50x4': 178_300_601,
    'RN50x16': 290_979_217,
    'RN50x64-quickgelu': 623_258_305,
    'ViT-S-32': 63_085_825,
    'ViT-S-16-alt': 42_396_161,
    'ViT-M-32': 103_119_873,
    'ViT-B-32-quickgelu': 151_277_313,
    'ViT-B-16': 149_620_737,
    'ViT-B-16-plus-240': 208_377_345,
    'ViT-L-14': 427_616_513,
    'ViT-L-14-336': 427_944_193,
    'ViT-H-14': 986_109_441,
    'ViT-g-14': 1_366_678_273,
    'ViT-bigG-14': 2_539_567_105,
    'ViT-L-14-CLIPA': 414_210_561,
    'convnext_base': 151_518_849,
    'convnext_base_w': 179_385_345,
    'convnext_base_w_320': 179_385_345,
    'convnext_large_d': 351_772_609,
    'convnext_large_d_320': 351_772_609,
    'convnext_xxlarge': 1_200_576_385,
    'EVA01-g-14': 1_136_435_841,
    'EVA01-g-14-plus': 1_366_621_569,
    'EVA02-B-16': 149_691_137,
    'EVA02-L-14': 427_755_457,
    'EVA02-L-14-336': 428_083_137,
    'EVA02-E-14': 4_704_589_569,
    'EVA02-E-14-plus': 5_044_889_089,
    'PE-Core-T-16-384': 69_546_113,
    'PE-Core-S-16-384': 87_188_225,
    'PE-Core-B-16': 447_660_545,
    'PE-Core-L-14-336': 671_138_817,
    'PE-Core-bigG-14-448': 2_419_267_841,
    'ViT-B-16-SigLIP': 203_155_970,
    'ViT-L-16-SigLIP-256': 652_150_786,
    'ViT-SO400M-14-SigLIP-384': 877_960_498,
    'ViT-B-32-SigLIP2-256': 376_856_066,
    'ViT-SO400M-16-SigLIP2-256': 1_135_670_962,
    'ViT-gopt-16-SigLIP2-256': 1_871_393_906,
    'roberta-ViT-B-32': 212_723_457,
    'xlm-roberta-base-ViT-B-32': 366_121_473,
    'xlm-roberta-large-ViT-H-14': 1_193_014_785,
    'nllb-clip-base': 501_885_185,
    'nllb-clip-large': 1_399_216_641,
    'nllb-clip-base-siglip': 507_474_178,
    'nllb-clip-large-siglip': 1_195_496_514,
    'MobileCLIP-B': 149_777_153,
    'MobileCLIP2-B': 149_777_153,
    'MobileCLIP2-L-14': 427_617_281,
    # Of open_clip's class CoCa, with the decoder.
    'coca_ViT-B-32': 253_560_065,
    'coca_ViT-L-14': 638_450_177,
}


# One of each kind; the others follow from the table, or are slow.
KINDS = (
    'RN50',
    'ViT-B-32-quickgelu',
    'ViT-L-14-CLIPA',
    'ViT-B-16-SigLIP',
)


@pytest.mark.parametrize(
    'name', [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in PARAMETERS]
)
def test_numbers_of_parameters(name):
    model = clip.from_card(presets.architecture(name))
    assert state.count_parameters(clip.shapes(model)['params']) == PARAMETERS[name]


def test_biomedclip_has_as_many_parameters_as_in_timm_and_transformers():
    """ViT-B/16 of timm (85,798,656), BiomedBERT without its pooler (108,891,648), projections."""
    size, patch_size, width, depth, heads = _timm_vit.TRUNKS['vit_base_patch16_224']
    sizes = {'width': width, 'depth': depth, 'heads': heads, 'mlp_dim': 4 * width}
    image = {'name': 'vit', 'image_size': size, 'patch_size': patch_size, 'pool': 'cls', **sizes}
    bert = 'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract'
    model = clip.from_card(
        {
            'image': image | _timm_vit._FIELDS,
            'text': _hf_text.KNOWN[bert] | {'context_length': 256, 'pool': 'cls'},
            'embed_dim': 512,
            'image_proj': 'linear',
            'text_proj': 'mlp',
            'init_logit_bias': None,
        }
    )
    projections = 768 * 512 + 768 * 640 + 640 * 512
    count = state.count_parameters(clip.shapes(model)['params'])
    assert count == 85_798_656 + 108_891_648 + projections + 1 == 195_902_721


def block(width, mlp_dim, **_):
    """Attention, MLP and two norms."""
    return 4 * width * (width + 1) + 2 * width * mlp_dim + width + mlp_dim + 4 * width


def count(card):
    """The number of parameters of a model whose image encoder is a ViT, by its fields."""
    image, text, embed_dim = card['image'], card['text'], card['embed_dim']
    width, tokens = image['width'], (image['image_size'] // image['patch_size']) ** 2
    total = 3 * image['patch_size'] ** 2 * width + width * image['patch_bias']
    if image['stem'] == 'convolutions':
        narrow = width // 4
        total = (3 * (image['patch_size'] // 4) ** 2 + 4 * narrow + 4) * narrow
        total += 4 * narrow * width + width
        total -= width  # the class token has no position
    total += (tokens + image['class_token']) * width + width * image['class_token']
    total += image['depth'] * block(**image) + 2 * width * (1 + image['pre_norm'])
    if image['pool'] == 'map':  # a block with one norm and a query
        total += block(**image) - 2 * width + width
    total += width * embed_dim * (card['image_proj'] != 'none')
    total += embed_dim * (card['image_proj'] == 'biased')
    total += (text['vocab_size'] + text['context_length']) * text['width']
    total += text['depth'] * block(**text) + 2 * text['width']
    total += (text['width'] + (card['text_proj'] == 'biased')) * embed_dim
    return total + 1 + (card['init_logit_bias'] is not None)


def test_every_name_is_a_model_of_its_published_size():
    counted = 0
    for name in presets.names():
        card = clip.to_card(clip.from_card(presets.architecture(name)))
        image, text = card['image'], card['text']
        assert (card['init_logit_bias'] is not None) == ('siglip' in name.lower())
        assert (image['name'] == 'resnet') == name.startswith('RN')
        if text['name'] != 'transformer':
            continue
        assert text['activation'] == image.get('activation', text['activation'])
        assert (text['activation'] == 'quick_gelu') == name.endswith('-quickgelu')
        if name in PARAMETERS and image['name'] == 'vit' and 'decoder' not in card:
            counted += 1
            assert count(card) == PARAMETERS[name], name
    assert counted == 21


def test_openai_published_nine():
    """Table 18 and 19 of the paper, and the one at 336 pixels."""
    nine = ['RN50', 'RN101', 'RN50x4', 'RN50x16', 'RN50x64']
    nine += ['ViT-B-32', 'ViT-B-16', 'ViT-L-14', 'ViT-L-14-336']
    assert {f'{name}-quickgelu' for name in nine} <= set(presets.names())


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"no 'ViT-B-23'\. Did you mean 'ViT-B-32'"):
        presets.architecture('ViT-B-23')


class Words:
    """What `build.architecture` reads of a tokenizer."""

    vocab_size, context_length, eot_id = 50, 12, 3


def test_a_config_names_one_and_changes_it():
    nothing = {'name': None, 'variant': None}
    config = {
        'preset': 'ViT-B-16-SigLIP',
        'image': {**nothing, 'image_size': 64, 'depth': 2},
        'text': {**nothing, 'depth': 1},
        'embed_dim': None,
    }
    assert build.architecture(config, Words())['init_logit_bias'] is None  # the loss is softmax
    card = build.architecture(config, Words(), loss='sigmoid')
    assert (card['embed_dim'], card['image_proj'], card['init_logit_bias']) == (768, 'none', -10.0)
    image, text = card['image'], card['text']
    assert (image['image_size'], image['depth'], image['pool']) == (64, 2, 'map')
    assert (text['vocab_size'], text['context_length'], text['pool']) == (50, 12, 'last')
    clip.shapes(build.model(card))


def test_another_encoder_takes_the_place_of_the_named_one():
    config = {
        'preset': 'ViT-B-32',
        'image': {'name': 'resnet', 'variant': 'RN50'},
        'text': {'name': None},
    }
    image = build.architecture(config, Words())['image']
    assert (image['name'], image['image_size'], image['depths']) == ('resnet', 224, [3, 4, 6, 3])
    assert 'patch_size' not in image


def test_clips_end_token_is_the_tokenizers():
    config = {'preset': 'ViT-B-32', 'image': {}, 'text': {}}
    text = build.architecture(config, Words())['text']
    assert (text['pool'], text['eot_id']) == ('eot', 3)
