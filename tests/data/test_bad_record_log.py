"""A run over data of which some cannot be used, through the command line."""

import io
import json
import os
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.runs import summary, train, training

GOOD = 60


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(size: tuple[int, int] = (40, 30), mode: str = 'RGB') -> Image.Image:
    noise = np.random.default_rng(sum(size)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def members() -> list[tuple[str, bytes]]:
    """Every kind of trouble once, among pictures that are good or only unusual."""
    jpeg = encoded(picture(), 'JPEG')
    upright = Image.Exif()
    upright[0x0112] = 6
    frames = [picture(mode='RGB'), picture((40, 30)).rotate(180)]
    images = {
        'cut.jpg': jpeg[: len(jpeg) // 2],
        'text.jpg': b'<html>not found</html>',
        'nothing.jpg': b'',
        'pixel.png': encoded(picture((1, 1)), 'PNG'),
        'bomb.png': encoded(Image.new('1', (10_000, 10_000)), 'PNG'),
        'cmyk.jpg': encoded(picture(mode='CMYK'), 'JPEG'),
        'palette.png': encoded(picture(mode='P'), 'PNG'),
        'rotated.jpg': encoded(picture(), 'JPEG', exif=upright),
        'moving.webp': encoded(frames[0], 'WEBP', save_all=True, append_images=frames[1:]),
        'silent.jpg': jpeg,
        'garbled.jpg': jpeg,
        '../outside.jpg': jpeg,
    }
    found = []
    for name, data in images.items():
        stem = name.rpartition('.')[0]
        found.append((name, data))
        if stem != 'silent':
            found.append((f'{stem}.txt', b'\xff\xfe\xfa' if stem == 'garbled' else b'a caption'))
    found.append(('lonely.txt', b'a caption without an image'))
    for i in range(GOOD):
        found += [(f'{i:03}.jpg', jpeg), (f'{i:03}.txt', f'caption {i}'.encode())]
    return found


BAD = {
    'truncated': 'cut.jpg',
    'not_an_image': 'text.jpg',
    'empty': 'nothing.jpg',
    'too_small': 'pixel.png',
    'too_large': 'bomb.png',
    'no_caption': 'silent.jpg',
    'not_utf8': 'garbled.jpg',
}
USABLE = GOOD + 4  # CMYK, palette, rotated and moving ones


@pytest.fixture(scope='module')
def broken_tars(tmp_path_factory) -> str:
    """SPEC of a whole shard, and of one that ends in the middle of an image."""
    folder = tmp_path_factory.mktemp('broken')
    for name, chosen in (('a.tar', members()), ('b.tar', members()[-4:])):
        with tarfile.open(folder / name, 'w') as tar:
            for member, data in chosen:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    cut = (folder / 'b.tar').read_bytes()
    # Header, image and header, caption of one pair, then a part of the next.
    whole = 512 + -(-len(members()[-2][1]) // 512) * 512 + 2 * 512
    (folder / 'b.tar').write_bytes(cut[: whole + 700])
    return f'tars:{folder}/*.tar'


@pytest.fixture(scope='module')
def train_on_broken(broken_tars, tiny_config):
    """Trains on the broken shards: train_on_broken(workdir, CHANGES of the config)."""

    def run(workdir, *changes: str):
        return train(tiny_config, workdir, f'data.train={broken_tars}', *changes)

    return run


@pytest.fixture(scope='module')
def done(train_on_broken, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'broken'
    ended = train_on_broken(workdir, 'data.max_bad_fraction=0.5')
    assert ended.returncode == 0, ended.stderr
    return workdir, ended


def listed(workdir) -> list[dict]:
    lines = (workdir / 'bad_records-00000.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_cannot_be_used_is_counted_and_named(done):
    workdir, ended = done
    counts = summary(workdir)['bad_records']
    # 12 steps of 16 are three epochs of 64 of the 72 records.
    assert counts.keys() == BAD.keys()
    assert counts == Counter(x['kind'] for x in listed(workdir))
    for kind, name in BAD.items():
        assert 1 <= counts[kind] <= 6
        places = {x['where'] for x in listed(workdir) if x['kind'] == kind}
        assert len(places) == 1 and places.pop().endswith(name)
    assert 'records replaced by others: ' in ended.stdout
    last = list(map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines()))[-2:]
    assert any(row.get('bad_records/truncated') == counts['truncated'] for row in last)


def test_what_the_source_leaves_out_is_said(done):
    out = done[1].stdout
    for kind, place in (
        ('caption_without_image', 'lonely.txt'),
        ('unsafe_name', 'outside'),
        ('truncated_shard', 'b.tar'),
    ):
        (line,) = [x for x in out.splitlines() if x.startswith('skipped: ') and kind in x]
        assert place in line


def test_a_run_that_resumes_counts_as_one_that_never_stopped(done, train_on_broken, tmp_path):
    workdir, _ = done
    again = tmp_path / 'again'
    shutil.copytree(workdir, again)
    os.remove(again / 'summary.json')
    shutil.rmtree(again / 'checkpoints/12')
    ended = train_on_broken(again, 'data.max_bad_fraction=0.5')
    assert ended.returncode == 0, ended.stderr
    assert 'resumes from step 8 of 12' in ended.stdout
    assert summary(again)['bad_records'] == summary(workdir)['bad_records']
    assert listed(again) == listed(workdir)
    assert training(again) == training(workdir)


def test_too_much_of_it_ends_the_run(train_on_broken, tmp_path):
    workdir = tmp_path / 'run'
    changes = 'data.max_bad_fraction=0.05', 'total_steps=60', 'eval_every=60'
    ended = train_on_broken(workdir, *changes)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()[-1:]
    assert 'are bad, more than data.max_bad_fraction, 5.0%' in line
    assert 'truncated' in line and 'clip-jax data verify' in line and 'Traceback' not in line
    assert 32 <= len(listed(workdir)) < 64
    assert max(int(x.name) for x in (workdir / 'checkpoints').iterdir()) % 4 == 0
