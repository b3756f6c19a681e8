"""Commands of the README and the documentation, mistyped: one line each says what to do."""

import shlex

import pytest
from PIL import Image
from support.files import hashes

# A command, and what the line names: what was meant, or what to give. RUN is a run directory.
WRONG = [
    ('trian --config=quickstart --workdir=runs/x', "'train', 'eval'"),
    ('train --config=quikstart --workdir=runs/x', "Did you mean 'quickstart'?"),
    ('train --config=quickstart', 'required: --workdir'),
    ('train —config=quickstart —workdir=runs/x', 'flags begin with --'),
    ('train --config quickstart --workdir x --config.batchsize 64', "Did you mean 'batch_size'?"),
    ('train --config=quickstart --workdir=x --config.total_steps=many', 'total_steps is'),
    ('train --config=quickstart --workdir=x --config.seed', 'expected --config.seed=value'),
    ('train --config=quickstart --workdir=x --batch_size=64', 'expected --config.key=value'),
    ('train --config=quickstart --workdir=x seed=3', "no flag 'seed=3'; expected --config."),
    ('train --config=mine.py --workdir=x', 'mine.py, line 2'),
    ('train --config=quickstart --workdir=x --config.data.train=photos', "'folder:photos'"),
    ('eval zero-shot --model=RUN --data=folder:photos', "Did you mean 'zeroshot'?"),
    ('eval --model=RUN --data=folder:photos', 'give its name: clip-jax eval NAME'),
    ('eval zeroshot --model=RUN', '--data=SPEC'),
    ('eval zeroshot --model=RUN --data=photos', "'folder:photos'"),
    ('eval zeroshot --model=RUN --data=folders:photos', "Did you mean 'folder'?"),
    ('eval zeroshot --model=RUN --data=tfds:shapes_captions', 'NAME[/CONFIG]/SPLIT'),
    ('eval zeroshot --model=RUN --data=folder:photos --template=plain', "mean 'templates'?"),
    ('eval zeroshot --model=RUN --data=folder:photos --classes=0,1', '["0", "1"]'),
    ('eval zeroshot --model=RUN --data=folder:photos --classes=cat,dog', 'clip-jax classify'),
    ('eval retrieval --model=RUN --data=folder:photos --out=report', 'ends in .json'),
    ('eval retrieval --model=openai/clip-vit --data=folder:photos', 'Did you mean openai/clip'),
    ('eval retrieval --model=http://localhost:9/b.pt --data=folder:photos', 'cannot be reached'),
    ('eval suite --suite=clip72 --model=RUN', "Did you mean 'clip27'?"),
    ('embed --model=RUN --data=folder:photographs --out=e', 'mine.py, photos'),
    ('embed --model=RUN --data=folder:photos --out=mine.py', 'mine.py is a file; name a folder'),
    ('embed --model=RUN --data=folder:photos --out=e --feature=x', 'there is no flag --feature'),
    ('convert RUN exported --layout=openclip', "Did you mean 'open_clip'?"),
    ('convert RUN --layout=open_clip', 'required: DST'),
    ('checkpoint verify runs/none', 'expected a run directory'),
    ('checkpoint check RUN', "'list', 'verify'"),
    ('data inspect flickr8k/*.tar', 'KIND:ADDRESS'),
    ("data verify 'tars:flickr8k/*.tar'", "a glob or a range of tar files: 'x-*.tar'"),
    ('data import folder:photos prepared', 'required: --name'),
    ('data inspect folder:photos --threads=0', 'expected at least 1'),
    ('plan --config=quickstart --topology=v6:16x16', "Did you mean 'v6e'?"),
    ('plot --workdir RUN --dpi 3', "no flag '--dpi'; clip-jax plot --help lists"),
    ('plot runs/none', 'not a run directory'),
    ('classify folder:photos --model=RUN --labels=cat --out=a.csv', "'cat,dog' for classes"),
    ('classify photos --model=RUN --labels=cat,dog --out=a.csv', "'folder:photos'"),
    ('classify folder:photos --model=RUN --labels=cat,dog --out=a.xlsx', 'ends in .csv'),
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Makes the current folder one with a folder of photographs and a config with an error."""
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (40, 40), 'red').save(tmp_path / 'photos' / 'a.jpg')
    (tmp_path / 'mine.py').write_text('def get_config():\n    retrun 3\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(('command', 'word'), WRONG)
def test_a_mistyped_command_gets_one_line_that_says_what_to_do(
    run, tiny_run, photos, command, word
):
    before = hashes(photos), sorted(photos.rglob('*'))
    words = shlex.split(command)
    code, _, error = run(*(text.replace('RUN', str(tiny_run)) for text in words))
    *usage, line = error.splitlines()
    assert word in line
    if code == 2:
        assert usage[0].startswith('usage: clip-jax') and ': error: ' in line
    else:
        assert (code, usage) == (1, []) and line.startswith(f'clip-jax {words[0]}: ')
    assert (hashes(photos), sorted(photos.rglob('*'))) == before
