"""Progress: a bar on a terminal, lines in the log elsewhere."""

import pytest

from clip_jax.runtime import progress
from clip_jax.runtime.progress import Progress, track


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    logged = []
    monkeypatch.setattr(progress.logging, 'info', lambda text, *args: logged.append(text % args))
    return logged


def test_without_a_terminal_a_line_is_logged_every_ten_seconds(lines, capsys):
    clock = [100.0]
    with Progress('read', 1_000_000, done=400_000, clock=lambda: clock[0]) as done:
        for _ in range(30):
            clock[0] += 1
            done.advance(1_000)
    # The 400,000 that were done before do not count for the speed.
    assert lines == [
        'read: 410,000 of 1,000,000 records, 1,000 per second, 0:09:50 left',
        'read: 420,000 of 1,000,000 records, 1,000 per second, 0:09:40 left',
        'read: 430,000 of 1,000,000 records, 1,000 per second, 0:09:30 left',
    ]
    assert capsys.readouterr().err == ''


def test_nothing_is_logged_where_that_is_not_wanted_or_no_total_is_known(lines):
    for options in ({'total': 10, 'log': False}, {}):
        clock = [0.0]
        with Progress('read', **options, clock=lambda clock=clock: clock[0]) as done:
            clock[0] += 1000
            done.advance()
        assert done.done == 1
    assert lines == []


def test_on_a_terminal_there_is_a_bar(lines, capsys, monkeypatch):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    with Progress('read', 10) as done:
        done.advance(5)
        done.describe('decode')
    shown = capsys.readouterr().err
    assert 'read' in shown
    assert 'decode' in shown
    assert lines == []


def test_tracked_items_are_the_items():
    assert list(track(iter('abc'), 'read', 3)) == ['a', 'b', 'c']
