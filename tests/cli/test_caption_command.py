"""`clip-jax caption`: captions of images in a CSV file, and bad input."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image
from reference import coca

import clip_jax
from clip_jax import convert, tokenizers
from clip_jax.data import shapes

OPTIONS = ('--method=greedy', '--max_length=8')


@pytest.fixture(scope='module')
def captioner(tmp_path_factory):
    """A folder of open_clip with a small CoCa of CLIP's vocabulary."""
    card, variables = convert.read(coca.FIXTURES / 'coca_wide')
    tokenizer = tokenizers.from_card({'name': 'bpe', 'context_length': 9})
    rng, model = np.random.default_rng(0), card['model']
    shape = (tokenizer.vocab_size, model['text']['width'])
    for part in ('text', 'decoder'):
        model[part]['vocab_size'] = tokenizer.vocab_size
    tables = rng.normal(size=(2, *shape)).astype(np.float32)
    variables['params']['text']['token_embedding']['embedding'] = tables[0]
    variables['params']['decoder']['logits']['kernel'] = tables[1].T
    folder = tmp_path_factory.mktemp('coca') / 'model'
    convert.write(folder, 'open_clip', {**card, 'tokenizer': tokenizer.card}, variables)
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for name in ('red star', 'blue ring', 'green heart'):
        shapes.draw(name).save(folder / f'{name}.png')
    (folder / 'x.png').write_bytes(b'no image')
    return folder


def test_every_image_gets_a_caption(run, captioner, pictures, tmp_path):
    out = tmp_path / 'captions.csv'
    flags = f'--model={captioner}', f'--out={out}', *OPTIONS
    code, printed, _ = run('caption', f'folder:{pictures}', *flags)
    assert code == 0 and 'a row for each of 4 records' in printed
    with out.open(encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ['where', 'caption', 'bad']
    assert [bool(row['bad']) for row in rows] == [False, False, False, True]
    clip = clip_jax.load(captioner)
    good = [row['where'] for row in rows if not row['bad']]
    assert [row['caption'] for row in rows[:3]] == clip.caption(good, max_length=8)
    assert all(row['caption'] for row in rows[:3]) and not rows[3]['caption']


def test_samples_do_not_depend_on_the_batch(captioner):
    clip = clip_jax.load(captioner)
    images = [Image.new('RGB', (16, 16), (40 * i, 90, 200 - 30 * i)) for i in range(5)]
    how = {'method': 'sample', 'max_length': 6, 'seed': 3}
    captions = clip.caption(images, **how)
    assert len({*captions}) > 1
    assert dataclasses.replace(clip, batch_size=8).caption(images, **how) == captions


def test_what_cannot_be_captioned(line, captioner, tiny_run, pictures, tmp_path):
    def caption(*options, model=captioner, out='found.csv'):
        flags = f'--model={model}', f'--out={tmp_path / out}'
        return line('caption', f'folder:{pictures}', *flags, *options)

    assert 'no caption decoder' in caption(model=tiny_run)
    assert 'captions: method' in caption('--method=best')
    assert 'captions: option' in caption('--beam=3')
    assert 'expected at most 9' in caption('--max_length=30')
    assert 'expected a new name that ends in .csv' in caption(out='found.txt')
