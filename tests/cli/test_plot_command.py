"""`clip-jax plot`: HTML reports, and bad input."""

import http.server
import json
import shutil
import threading

import pytest
from support.files import hashes
from support.reports import suite_table


def test_a_plot_needs_a_run(line, tmp_path):
    assert f'{tmp_path}: not a run directory' in line('plot', f'--workdir={tmp_path}')
    assert 'not a run directory' in line('plot', f'--workdir={tmp_path / "none"}')
    assert "there is no flag '--dpi=3'" in line('plot', f'--workdir={tmp_path}', '--dpi=3')


def test_a_plot_needs_metrics(line, tiny_run, tmp_path):
    shutil.copy(tiny_run / 'config.json', tmp_path)
    assert 'no metrics.jsonl' in line('plot', f'--workdir={tmp_path}')


def test_runs_are_compared_in_one_page(run, tiny_run, tmp_path, monkeypatch):
    other = tmp_path / 'other'
    other.mkdir()
    for name in 'config.json', 'metrics.jsonl', 'summary.json':
        shutil.copy(tiny_run / name, other)
    before = hashes(tiny_run)
    out = tmp_path / 'new' / 'compare.html'
    monkeypatch.setenv('HOME', str(tmp_path))
    flags = f'--workdir={tiny_run}', '--workdir=~/other', '--out=~/new/compare.html'
    assert run('plot', *flags) == (0, f'{out}\n', '')
    page = out.read_text()
    assert page.count('<img') == 1
    for order in (
        (tiny_run, f'--out={out}', '~/other'),
        (f'--out={out}', tiny_run, '--workdir', '~/other'),
    ):
        out.unlink()
        assert run('plot', *order) == (0, f'{out}\n', '')
        assert out.read_text() == page
    assert hashes(tiny_run) == before


def test_a_page_elsewhere_leaves_the_run_as_it_is(run, tiny_run, tmp_path):
    before = hashes(tiny_run)
    out = tmp_path / 'page.html'
    assert run('plot', f'--workdir={tiny_run}', f'--out={out}') == (0, f'{out}\n', '')
    assert out.read_text().count('<img') == len(list((tiny_run / 'plots').glob('*.png')))
    assert hashes(tiny_run) == before


def test_what_a_page_needs(line, tiny_run, tmp_path):
    here, out = f'--workdir={tiny_run}', f'--out={tmp_path / "x.html"}'
    (tmp_path / 'there.html').write_text('mine')
    (tmp_path / 'x.json').write_text('{}')
    assert 'expected DIR, a run directory' in line('plot')
    assert '--out: expected a file' in line('plot', here, f'--workdir={tmp_path}')
    assert '--out: expected a file' in line('plot', '--report=x.json')
    for name in 'there.html', 'x.png':
        said = line('plot', here, f'--out={tmp_path / name}')
        assert f'{name}: expected a new name' in said
    below = f'--out={tmp_path / "x.json" / "x.html"}'
    assert f'{tmp_path / "x.json"} is not a folder' in line('plot', '--report=/no/x.json', below)
    assert 'expected different ones' in line('plot', here, here, out)
    assert 'not a report of an eval' in line('plot', here, f'--report={tmp_path / "x.json"}', out)
    assert '/no/x.json: no such file' in line('plot', '--report=/no/x.json', out)
    assert 'not a run directory' in line('plot', here, f'--workdir={tmp_path}', out)


def test_reports_on_the_same_data_are_compared(run, tiny_run, tmp_path):
    paths = []
    for name in 'a', 'b':
        paths.append(tmp_path / f'{name}.json')
        shutil.copy(tiny_run / 'evals' / 'retrieval.json', paths[-1])
    out = tmp_path / 'page.html'
    flags = *(f'--report={path}' for path in paths), f'--out={out}'
    assert run('plot', *flags) == (0, f'{out}\n', '')
    page = out.read_text()
    assert '2 reports compared' in page and '<td>a and b</td>' in page
    out.unlink()
    assert run('plot', *flags[1:])[0] == 0
    assert 'compared' not in out.read_text()


def test_a_suite_has_a_page_of_its_own(run, line, tiny_run, tmp_path):
    (tmp_path / 'suite.json').write_text(json.dumps(suite_table()))
    suite, out = f'--suite={tmp_path}', tmp_path / 'models.html'
    flags = suite, f'--out={out}', '--x=sketch', '--y=pets'
    assert run('plot', *flags) == (0, f'{out}\n', '')
    assert out.read_text().count('<img') == 3
    out.unlink()
    assert '--out: expected a file' in line('plot', suite)
    assert 'a suite has its own page' in line('plot', suite, f'--out={out}', tiny_run)
    assert "--x: there is no 'ket'" in line('plot', suite, f'--out={out}', '--x=ket')
    assert '--x and --y: expected --suite' in line('plot', tiny_run, '--x=pets')
    assert 'suite.json: no such file' in line('plot', f'--suite={tiny_run}', f'--out={out}')
    assert not out.exists()


def test_links_in_a_run_directory_are_not_followed(run, tiny_run, tmp_path):
    theirs, mine = tmp_path / 'theirs', tmp_path / 'mine'
    shutil.copytree(tiny_run, theirs)
    mine.write_text('mine')
    for name in 'training.png', 'index.html', 'index.html.partial':
        (theirs / 'plots' / name).unlink(missing_ok=True)
        (theirs / 'plots' / name).symlink_to(mine)
    assert run('plot', theirs)[0] == 0
    assert mine.read_text() == 'mine'
    assert not (theirs / 'plots' / 'index.html').is_symlink()


@pytest.fixture
def server():
    """An address, and the requests that were made of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as own:
        threading.Thread(target=own.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{own.server_port}', asked
        own.shutdown()


@pytest.mark.parametrize('fetch', [False, True])
def test_addresses_in_a_run_directory_are_asked_only_on_request(
    run, tiny_run, tmp_path, server, fetch, caplog
):
    address, asked = server
    theirs = tmp_path / 'theirs'
    shutil.copytree(tiny_run, theirs)
    (report,) = [
        path for path in (theirs / 'evals').glob('*.json') if 'examples' in path.read_text()
    ]
    content = json.loads(report.read_text())
    report.write_text(json.dumps({**content, 'data': f'tars:{address}/x.tar'}))
    assert run('plot', theirs, *(['--fetch'] if fetch else []))[0] == 0
    assert 'figures with images are left out' in caplog.text
    assert ('give --fetch' in caplog.text) == (not fetch) and bool(asked) == fetch
