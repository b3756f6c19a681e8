"""Help that is made from signatures and docstrings."""

import inspect
import re

import pytest

from clip_jax import lookup

EVALUATION = '''
def evaluate(
    encode_image,
    encode_text,
    data,
    *,
    labels,
    depth: int = 3,
    words: tuple = ('a', 'b'),
    file: str = '',
    seed: int | None = None,
):
    """Scores nothing.

    Args:
        encode_image: not an option.
        data: not an option either.
        labels: what the labels are. This text is so long that it does not fit in one line of the
            help, and goes on: here is a colon.
        depth (int): how deep.
        words: which ones.

    Returns:
        file: not a description of the option `file`.
    """
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / 'my_evals').mkdir()
    (tmp_path / 'my_evals' / 'nothing.py').write_text(EVALUATION)
    monkeypatch.syspath_prepend(tmp_path)
    return 'my_evals.nothing'


def test_options_come_from_the_signature_and_their_texts_from_the_docstring(run, plugin):
    code, text, _ = run('eval', plugin, '--help')
    assert code == 0
    assert (
        text.partition(f'options of {plugin}:\n')[2]
        == """\
  --labels=VALUE        what the labels are. This text is so long that it does not fit in one line
                        of the help, and goes on: here is a colon. (required)
  --depth=VALUE         how deep. (default: 3)
  --words=VALUE         which ones. (default: ('a', 'b'))
  --file=VALUE          (default: not set)
  --seed=VALUE          (default: not set)
"""
    )


@pytest.mark.parametrize('name', lookup.names('evals'))
def test_every_evaluation_lists_its_options(run, name):
    text = run('eval', name, '--help')[1].partition(f'options of {name}:')[2]
    _, _, _, *options = inspect.signature(lookup.module('evals', name).evaluate).parameters
    listed = [line.split('=')[0] for line in text.splitlines() if line.startswith('  --')]
    assert listed == [f'  --{option}' for option in options]
    assert not re.search(r'=VALUE\s+\(', text)  # each has a text, from the docstring


def test_help_lists_evaluations_and_kinds_of_sources(run):
    text = run('eval', '--help')[1].partition('evaluations:')[2]
    assert all(f'\n  {name} ' in text for name in lookup.names('evals'))
    text = run('data', 'inspect', '--help')[1].partition('kinds of sources')[2]
    assert all(f'\n  {name} ' in text for name in lookup.names('data.sources'))


def test_options_of_sources(run):
    text = run('data', 'verify', '3 * tars:x + tfds:y/train', '--help')[1]
    assert '\n  --text_exts=' in text.partition('options of the source tars:')[2]
    assert '\n  --data_dir=' in text.partition('options of the source tfds:')[2]
    text = run('eval', 'retrieval', '--data=tars:x', '--help')[1]
    assert '\n  --data.text_exts=' in text.partition('options of the source tars:')[2]


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (('eval', 'zerosht', '--help'), "'zeroshot'"),
        (('eval', 'no.such_module', '--help'), "'no.such_module'"),
        (('data', 'inspect', 'tar:x', '--help'), "'tars'"),
    ],
)
def test_help_for_an_unknown_plug_in_is_wrong_usage(run, arguments, word):
    code, _, error = run(*arguments)
    assert code == 2 and word in error.splitlines()[-1]
