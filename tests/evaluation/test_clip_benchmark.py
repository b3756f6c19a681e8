"""The scores of evaluation sets are those of CLIP_benchmark on the same model and files.

`pip install -e '.[reference]'` installs it.
"""

import pytest
from support import small_models, wds_sets

from clip_jax import convert
from clip_jax.data.preprocess import Preprocess
from clip_jax.evaluation import single
from clip_jax.models import clip
from clip_jax.tokenizers import bpe

pytestmark = pytest.mark.reference
TOLERANCE = 1e-4
IMAGE = {**small_models.VIT, 'image_size': 48, 'patch_size': 16}
TEXT = {**small_models.TEXT, 'vocab_size': 49408, 'context_length': 77, 'pool': 'argmax'}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small model with random weights, in open_clip's layout."""
    made = clip.from_card({'image': IMAGE, 'text': TEXT, 'embed_dim': 20})
    card = {
        'model': clip.to_card(made),
        'preprocess': Preprocess(48).card,
        'tokenizer': bpe.Tokenizer(77).card,
    }
    folder = tmp_path_factory.mktemp('model') / 'x'
    convert.write(folder, 'open_clip', card, small_models.random_variables(made))
    return folder


@pytest.fixture(scope='module')
def theirs(model):
    """Scores a set with CLIP_benchmark."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    open_clip = pytest.importorskip('open_clip', reason='open_clip is not installed')
    pytest.importorskip('webdataset', reason='webdataset is not installed')
    builder = pytest.importorskip(
        'clip_benchmark.datasets.builder', reason='clip_benchmark is not installed'
    )
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    def accuracy(logits, target, topk):
        # Its own converts an array of one number to a scalar, which NumPy no longer allows.
        hits = [(logits.topk(k)[1] == target[:, None]).any(dim=1) for k in topk]
        return [hit.float().mean().item() for hit in hits]

    network, _, transform = open_clip.create_model_and_transforms(f'local-dir:{model}')
    tokenizer = open_clip.get_tokenizer(f'local-dir:{model}')

    def score(folder, *, retrieval: bool) -> dict[str, float]:
        task = {'task': 'zeroshot_retrieval'} if retrieval else {}
        data = builder.build_dataset('wds/any', root=str(folder), transform=transform, **task)
        collate = {'collation_fn': builder.image_captions_collate_fn} if retrieval else {}
        batches = torch.utils.data.DataLoader(data.batched(16, **collate), batch_size=None)
        evaluated = network.eval(), batches, tokenizer
        if retrieval:
            ats = {'recall_k_list': [1, 5, 10]}
            return zeroshot_retrieval.evaluate(*evaluated, device='cpu', amp=False, **ats)
        return zeroshot_classification.evaluate(
            *(*evaluated, data.classes, data.templates), device='cpu', amp=False
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeroshot_classification, 'accuracy', accuracy)
        yield score


def ours(model, folder, type_: str) -> dict[str, float]:
    report = single.run(type_, {}, f'wds:{folder}', model=str(model))
    return {name: score['value'] for name, score in report['scores'].items()}


def test_accuracy_and_mean_per_class(model, theirs, tmp_path):
    # Another number of images in each class, so that the two differ.
    folder = wds_sets.classes(tmp_path / 'x', 107)
    there, here = theirs(folder, retrieval=False), ours(model, folder, 'zeroshot')
    assert here['top1'] == pytest.approx(there['acc1'], abs=TOLERANCE)
    assert here['top5'] == pytest.approx(there['acc5'], abs=TOLERANCE)
    found = there['mean_per_class_recall']
    assert here['mean_per_class'] == pytest.approx(found, abs=TOLERANCE) != here['top1']
    assert 0 < here['top1'] < here['top5'] < 1


def test_mean_average_precision(model, theirs, tmp_path):
    folder = wds_sets.several_classes(tmp_path / 'x')
    there, here = theirs(folder, retrieval=False), ours(model, folder, 'zeroshot')
    found = there['mean_average_precision']
    assert here['mean_average_precision'] == pytest.approx(found, abs=TOLERANCE)


def test_recall(model, theirs, tmp_path):
    folder = wds_sets.captions(tmp_path / 'x', 60)
    there, here = theirs(folder, retrieval=True), ours(model, folder, 'retrieval')
    for k in (1, 5, 10):
        for way, name in ('image_to_text', 'text'), ('text_to_image', 'image'):
            found = there[f'{name}_retrieval_recall@{k}']
            assert here[f'{way}/recall@{k}'] == pytest.approx(found, abs=TOLERANCE)
