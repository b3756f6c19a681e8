"""What tests of the commands share."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import hashes

from clip_jax.cli import main


@pytest.fixture
def run(capfd) -> Callable[..., tuple[int, str, str]]:
    """Runs `clip-jax ARGUMENTS` in this process: returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main.main([str(argument) for argument in arguments])
        return end.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def line(run, tmp_path) -> Callable[..., str]:
    """Runs a command that fails: returns its one line, after checking that nothing was written."""

    def fail(*arguments: object) -> str:
        before = hashes(tmp_path), sorted(tmp_path.rglob('*'))
        code, _, error = run(*arguments)
        command = f'clip-jax {arguments[0]}: '
        assert code == 1
        assert error.startswith(command) and error.count('\n') == 1
        assert (hashes(tmp_path), sorted(tmp_path.rglob('*'))) == before
        return error.removeprefix(command).rstrip('\n')

    return fail


@pytest.fixture
def bad_tar(tiny_tars, tmp_path) -> str:
    """SPEC of the tiny shard with one image, 00020.jpg, that is corrupt."""
    path = tmp_path / 'bad.tar'
    with tarfile.open(tiny_tars.removeprefix('tars:')) as old, tarfile.open(path, 'w') as new:
        for member in old:
            data = old.extractfile(member).read()
            data = b'x' * len(data) if member.name == '00020.jpg' else data
            new.addfile(member, io.BytesIO(data))
    return f'tars:{path}'


@pytest.fixture
def one_name(tmp_path) -> Path:
    """A file of class names that are all the same."""
    path = tmp_path / 'one_name.txt'
    path.write_text('red\nred\nred\nred\n')
    return path
