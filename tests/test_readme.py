"""What the README tells people to type works."""

import re
import shlex

import pytest
from support.process import ROOT

from clip_jax.cli import config_file, main

README = (ROOT / 'README.md').read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.+?)```', README, re.DOTALL)


def commands() -> list[list[str]]:
    """The `clip-jax` commands of the README, as lists of arguments."""
    lines = '\n'.join(blocks('bash')).replace('\\\n', ' ').splitlines()
    return [shlex.split(line) for line in lines if line.startswith('clip-jax')]


def test_the_lines_that_load_and_classify_run(tiny_run, capsys):
    (code,) = blocks('python')
    assert 'runs/quickstart' in code
    exec(code.replace('runs/quickstart', str(tiny_run)), {})
    label, _, similarity = capsys.readouterr().out.partition('cosine similarity')
    assert label.split()[0] in ('red', 'blue')
    assert -1 <= float(similarity) <= 1


@pytest.mark.parametrize('command', commands(), ids=lambda c: ' '.join(c[1:3]))
def test_commands_name_configs_keys_and_evals_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    args, rest = main._parser().parse_known_args(command[1:])
    assert args.command in main.COMMANDS
    if args.command == 'train':
        config = config_file.read(args.config, rest)
        assert config.total_steps > 0
    elif args.command == 'eval' and args.name != 'suite':
        assert (ROOT / f'clip_jax/evals/{args.name}.py').exists()


def test_files_that_it_links_to_exist():
    for path in re.findall(r'\]\((?!http)([^)#]+)\)', README):
        assert (ROOT / path).exists(), path
