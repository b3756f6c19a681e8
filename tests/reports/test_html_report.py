"""A page is one file that shows runs and reports, and asks for nothing else."""

import base64
import html
import html.parser
import io
import json
import re

import pytest
from PIL import Image
from support.reports import classified, pictures, queries_report, run_rows

from clip_jax import evals, metrics
from clip_jax.reports import drawing, html_report
from clip_jax.runtime import atomic

VOID = {'meta', 'img', 'br', 'link'}


class Reader(html.parser.HTMLParser):
    """Reads a page: its text, its addresses, its pictures; tags have to be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ('src', 'href', 'srcset', 'action')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return ' '.join(self.words)

    @property
    def images(self):
        found = []
        for address in self.addresses:
            head, _, data = address.partition('base64,')
            assert head == 'data:image/png;'
            found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def read(path):
    text = path.read_text()
    assert not re.search(r'https?://|@import|url\(|<script|<link', text)
    return Reader(text)


def make_run(folder, *, steps=200, summary=True, reports=None, **config):
    """Writes a small run directory by hand."""
    folder.mkdir(parents=True)
    config = {'batch_size': 16, 'total_steps': 200, 'data': {'options': {}}, **config}
    (folder / 'config.json').write_text(json.dumps(config))
    writer = metrics.JsonlWriter(folder / 'metrics.jsonl')
    for row in run_rows(steps):
        writer.write_scalars(row.pop('step'), row)
    writer.close()
    for name, report in (reports or {'zs': classified()}).items():
        atomic.write_json(folder / 'evals' / f'{name}.json', report)
    if summary:
        summary = {'loss': 1.5, 'step': steps, 'pairs': 16 * steps, 'seconds': 75.0}
        summary |= {'versions': {'jax': '0.10.2'}, 'devices': '1 x cpu', 'zs/top1': 0.625}
        (folder / 'summary.json').write_text(json.dumps(summary))
    return folder


def test_the_page_of_a_run_has_its_numbers_and_all_its_figures(tmp_path):
    run = html_report.read_run(make_run(tmp_path / 'a <b>', note='<i>'))
    drawn = tmp_path / 'x.png'
    Image.new('RGB', (30, 20)).save(drawn)
    report = {**classified(), 'options': {'templates': 'plain & more'}}
    figures = {'': [drawn], 'zs': [drawn, drawn]}
    atomic.write(tmp_path / 'new' / 'x.html', html_report.run_page(run, figures, {'zs': report}))
    found = read(tmp_path / 'new' / 'x.html')
    assert [image.size for image in found.images] == [(30, 20)] * 3
    for words in ('a <b>', 'complete', '1 x cpu', '1 min 15 s', 'templates=plain & more', '62.5 %'):
        assert words in found.text
    assert '"<i>"' in found.text and 'jax 0.10.2' in found.text
    assert re.search(r'91\.2 % +top1', found.text)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x.html']


def test_a_run_that_goes_on_says_so(tmp_path):
    run = html_report.read_run(make_run(tmp_path / 'a', steps=100, summary=False))
    assert 'not complete: step 100 of 200' in Reader(html_report.run_page(run, {}, {})).text


def rows_of(text, title):
    """The cells of the first table after a heading."""
    table = re.search(r'<table>(.*?)</table>', text[text.index(f'<h2>{title}</h2>') :], re.S)
    return [
        [html.unescape(cell) for cell in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)]
        for row in re.findall(r'<tr>(.*?)</tr>', table.group(1))
    ]


def test_runs_are_compared_by_final_numbers_and_config(tmp_path):
    runs = html_report.read_runs(
        [
            make_run(tmp_path / 'x' / 'a', optimizer={'learning_rate': 1e-3, 'b1': 0.9}),
            make_run(tmp_path / 'x' / 'b', optimizer={'learning_rate': 2e-3, 'b1': 0.9}, more=1),
        ]
    )
    runs[1].summary['zs/top1'] = 0.75
    for count, run in enumerate(runs):
        run.rows[-1]['skipped/spike'] = 7 * count
    text = html_report.compare_page(runs)
    final = rows_of(text, 'Final numbers')
    assert final[0] == ['', 'a', 'b']
    assert ['', 'complete', 'complete'] in final
    assert ['zs · top1', '62.5 %', '75.0 %'] in final
    assert ['loss', '1.5', '1.5'] in final
    assert re.search(r'<td class="n best">75.0 %</td>', text)
    assert text.count('n best') == 1 and 'spike' not in text
    assert rows_of(text, 'Differences of the configs')[1:] == [
        ['optimizer.learning_rate', '0.001', '0.002'],
        ['more', '—', '1'],
    ]
    (curves,) = Reader(text).images
    assert curves.width > 1000
    assert Reader(html_report.compare_page([runs[0], runs[0]])).tags.count('table') == 1


@pytest.mark.parametrize(('better', 'expected'), [('higher', '3.5 nats'), ('lower', '2.5 nats')])
def test_the_best_of_a_score_is_the_highest_or_the_lowest(tmp_path, better, expected):
    score = evals.score(3.5, better=better, unit='nats')
    report = {'type': 'x', 'data': 'folder:y', 'scores': {'nll': score}}
    runs = []
    for name, value in ('a', 3.5), ('b', 2.5):
        run = html_report.read_run(make_run(tmp_path / name, reports={'x': report}))
        run.summary['x/nll'] = value
        runs.append(run)
    text = html_report.compare_page(runs)
    assert re.findall(r'<td class="n best">(.*?)</td>', text) == [expected]


def test_which_values_are_the_best():
    higher, lower = evals.score(0), evals.score(0, better='lower')
    values = [0.2, 0.5, float('nan'), 0.5]
    assert html_report.best(values, higher) == [1, 3]
    assert html_report.best(values, lower) == [0]
    assert html_report.best([0.5, 0.5], higher) == html_report.best(values, None) == []


def test_runs_that_are_called_alike_are_called_by_their_path(tmp_path):
    folders = [make_run(tmp_path / 'x' / 'a'), make_run(tmp_path / 'y' / 'a')]
    assert [run.name for run in html_report.read_runs(folders)] == list(map(str, folders))
    assert [run.name for run in html_report.read_runs(folders[:1])] == ['a']
    with pytest.raises(ValueError, match='expected different ones'):
        html_report.read_runs(folders[:1] * 2)


def test_a_report_and_its_figures_stand_in_a_page(tmp_path):
    def load(spec, indices):
        return pictures(len(indices))

    out = tmp_path / 'r.json'
    drawing.write_with_figures({**queries_report(2), 'model': 'runs/m'}, out, load)
    found = Reader(html_report.compare_page([], [html_report.report_file_section(out)]))
    assert len(found.images) == 2
    assert 'r: retrieval' in found.text and 'model: runs/m · data: folder:pairs' in found.text
    assert '5,000' in found.text and re.search(r'1,234 +image to text · median rank', found.text)


def test_what_is_no_run_or_report(tmp_path):
    with pytest.raises(ValueError, match=r'not a run directory \(it has no config\.json\)'):
        html_report.read_run(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match=r'not a run directory \(it has no metrics\.jsonl\)'):
        html_report.read_run(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('')
    for text, said in (
        ('{', ': not valid JSON'),
        ('[' * 100_000, ': lists or objects are nested too deeply'),
        ('[]', ' is a list of 0; expected an object'),
        ('{}', ': not the config of a run'),
        ('{"data": 1}', ': not the config of a run'),
        ('{"data": {"options": 1}}', ': not the config of a run'),
    ):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(ValueError, match=rf'config\.json{said}'):
            html_report.read_run(tmp_path)
    with pytest.raises(ValueError, match=r'config\.json: not a report of an evaluation'):
        html_report.report_file_section(tmp_path / 'config.json')
    folder = make_run(tmp_path / 'run')
    for text, said in ('{"loss"', ': not valid JSON'), ('[]', ' is a list of 0'):
        (folder / 'summary.json').write_text(text)
        with pytest.raises(ValueError, match=rf'summary\.json{said}'):
            html_report.read_run(folder)
    (folder / 'summary.json').write_text('{"loss": 1}')
    assert 'complete' in html_report.compare_page([html_report.read_run(folder)])
    with pytest.raises(ValueError, match='no such file'):
        html_report.report_file_section(tmp_path / 'none.json')
