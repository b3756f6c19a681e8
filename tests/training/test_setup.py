"""What fails while a run is set up is one line, and leaves nothing open."""

import threading

from support.runs import train

WRITER = """
from pathlib import Path

class Writer:
    def close(self):
        (workdir / 'closed').touch()

def create(folder, *, resume_step, config, broken=False):
    global workdir
    workdir = Path(folder)
    if broken:
        raise ValueError('nobody listens at this address')
    return Writer()
"""


def test_a_writer_that_cannot_be_opened_closes_the_others(tiny_config, tmp_path, monkeypatch):
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project/mine.py').write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / 'two_writers.py'
    config.write_text(f"""
import sys
sys.path.insert(0, {str(tiny_config.parent)!r})
import tiny
from ml_collections import ConfigDict

def get_config():
    c = tiny.get_config().unlock()
    mine = {{'type': 'project.mine'}}
    c.writers = ConfigDict({{'first': mine, 'second': {{**mine, 'broken': True}}}})
    return c.lock()
""")
    before = {*threading.enumerate()}
    done = train(config, tmp_path / 'run')
    assert done.returncode == 1 and 'nobody listens at this address' in done.stderr
    assert (tmp_path / 'run/closed').exists()
    assert not (tmp_path / 'run/training.lock').exists()
    assert not [t.name for t in {*threading.enumerate()} - before if 'to-device' in t.name]
