"""Figures come out whole: of full and of scanty numbers, no text over another, nothing cut off."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from support.reports import (
    CLASSES,
    LONG,
    SCORES,
    calibrated,
    classified,
    grouped,
    pictures,
    probe_report,
    queries_report,
    run_rows,
    shots_report,
    similarity_report,
    suite_table,
    zero_shot_report,
)

from clip_jax import evals, metrics
from clip_jax.reports import _style, compared, drawing, suites

ALL_SCORES = SCORES | {f'{n}{LONG * 2}/top1': evals.score(0.5) for n in range(9)}


def with_pictures(draw, report):
    """The report and the pictures that its figure asks for."""
    return [report, pictures(len(draw.shows(report)))]


def drawn(draw, *arguments, monkeypatch, **options):
    """Returns the matplotlib figure that a function draws."""
    figures = []
    monkeypatch.setattr(_style, 'save', lambda figure, path: figures.append(figure))
    draw(*arguments, 'figure.png', **options)
    return figures[0]


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def check_png(path, width, height):
    with Image.open(path) as image:
        assert image.format == 'PNG'
        pixels = np.asarray(image.convert('L'), float)
    assert pixels.std() > 5
    assert width[0] <= pixels.shape[1] <= width[1]
    assert height[0] <= pixels.shape[0] <= height[1]


@pytest.mark.filterwarnings('error')
def test_every_figure_of_a_report_is_written_and_not_blank(tmp_path):
    # 漢 is no sign of the font: a box stands for it, without a word.
    first = calibrated() | grouped() | classified(['猫', *CLASSES])
    reports = [first, queries_report(), probe_report(), shots_report()]
    names = []

    def load(spec, indices):
        return pictures(len(indices))

    for report in reports:
        for path in drawing.write_report(report, load, lambda name: tmp_path / f'{name}.png'):
            check_png(path, (700, 2400), (300, 2400))
            names.append(path.stem)
    assert names == [
        *('zero_shot', 'mistakes', 'per_class', 'groups', 'confusion', 'calibration'),
        *('similarity', 'queries', 'sweep', 'shots'),
    ]


@pytest.mark.parametrize(
    'error', [ValueError('there is no folder'), IndexError('it has 5 records, none with 7')]
)
def test_without_its_pictures_a_report_has_the_other_figures(tmp_path, caplog, error):
    def gone(spec, indices):
        raise error

    paths = drawing.write_report(classified(), gone, lambda name: tmp_path / f'{name}.png')
    assert [path.stem for path in paths] == ['per_class', 'confusion']
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert 'folder:test' in caplog.text and str(error) in caplog.text


@pytest.mark.filterwarnings('error')
def test_the_three_figures_are_written_and_not_blank(tmp_path):
    drawing.training(run_rows(), tmp_path / 'new' / 'training.png', scores=SCORES)
    drawing.zero_shot(zero_shot_report(), pictures(12), tmp_path / 'zero_shot.png')
    drawing.similarity(similarity_report(), pictures(6), str(tmp_path / 'similarity.png'))
    check_png(tmp_path / 'new' / 'training.png', (1200, 2200), (700, 1300))
    check_png(tmp_path / 'zero_shot.png', (1200, 2200), (700, 1300))
    check_png(tmp_path / 'similarity.png', (700, 2200), (500, 1800))


@pytest.mark.parametrize(
    ('draw', 'arguments'),
    [
        (drawing.training, [run_rows()]),
        (drawing.training, [run_rows(20)]),
        (
            drawing.training,
            [[{'step': n, 'loss': 1.0, f'{n % 9}{LONG * 2}/top1': 0.5} for n in range(20)]],
        ),
        (drawing.zero_shot, [zero_shot_report(), pictures(12)]),
        (drawing.zero_shot, [zero_shot_report(1), pictures(1)]),
        (drawing.zero_shot, [zero_shot_report(4, [LONG] * 6), pictures(4)]),
        (drawing.similarity, [similarity_report(12), pictures(12)]),
        (drawing.similarity, [similarity_report(1), pictures(1)]),
        (drawing.similarity, [similarity_report(3, text=LONG * 3), pictures(3)]),
        (drawing.mistakes, with_pictures(drawing.mistakes, classified())),
        (
            drawing.mistakes,
            with_pictures(drawing.mistakes, classified([f'{k} {LONG}' for k in range(9)])),
        ),
        (
            drawing.mistakes,
            with_pictures(
                drawing.mistakes, {**classified(), 'mistakes': classified()['mistakes'][:1]}
            ),
        ),
        (drawing.queries, with_pictures(drawing.queries, queries_report())),
        (drawing.queries, with_pictures(drawing.queries, queries_report(6, LONG * 3))),
        (drawing.queries, with_pictures(drawing.queries, queries_report(1))),
        (drawing.per_class, [classified(), []]),
        (drawing.per_class, [classified([f'{k} {LONG}' for k in range(300)], 1.0), []]),
        (drawing.confusion, [classified(), []]),
        (drawing.confusion, [classified(['cat', 'dog']), []]),
        (drawing.confusion, [classified([f'{k} {LONG}' for k in range(40)]), []]),
        (drawing.groups, [grouped(), []]),
        (drawing.groups, [grouped(1, interval=False), []]),
        (drawing.groups, [grouped(90, LONG), []]),
        (drawing.calibration, [calibrated(), []]),
        (drawing.calibration, [calibrated(1, fitted=False), []]),
        (compared.scores, [{'a': zero_shot_report()}]),
        (compared.scores, [{f'{k} {LONG}': queries_report() for k in range(12)}]),
        (suites.tasks, [suite_table()]),
        (suites.tasks, [suite_table(12, [f'{k} {LONG}' for k in range(30)], LONG)]),
        (suites.scatter, [suite_table(), 'parameters', 'mean/zeroshot']),
        (suites.scatter, [suite_table(20, prefix=LONG), 'imagenet', 'pets']),
        (suites.robustness, [suite_table()]),
        (suites.robustness, [suite_table(20, [f'{k} {LONG}' for k in range(9)], LONG)]),
        (drawing.sweep, [probe_report(), []]),
        (drawing.shots, [shots_report(), []]),
        (drawing.compared, [{'a': run_rows(), 'b': run_rows(300)}]),
        (drawing.compared, [{f'{k} {LONG}': run_rows(20) for k in range(9)}]),
    ],
)
def test_no_text_covers_another_or_leaves_the_figure(draw, arguments, monkeypatch):
    options = {'scores': ALL_SCORES} if draw in (drawing.training, drawing.compared) else {}
    figure = drawn(draw, *arguments, monkeypatch=monkeypatch, **options)
    figure.draw_without_rendering()  # settles the layout
    boxes = {}
    draw_text = Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_text(), text.get_window_extent(renderer)
        draw_text(text, renderer)

    monkeypatch.setattr(Text, 'draw', record)
    figure.draw_without_rendering()
    boxes = list(boxes.values())
    assert len(boxes) > 3
    if draw is drawing.training:
        assert min(axes.get_window_extent().width for axes in figure.axes) > 2 * figure.dpi
    for name, box in boxes:
        assert figure.bbox.x0 <= box.x0, name
        assert box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        # Boxes include the room for descenders: two points of it may be shared.
        points = figure.dpi / 72
        assert width <= 2 * points or height <= 2 * points, (one, other)


def test_classes_stand_by_their_score_and_many_without_the_middle(monkeypatch):
    report = classified([f'thing {k}' for k in range(100)])
    [axes] = drawn(drawing.per_class, report, [], monkeypatch=monkeypatch).axes
    order = sorted(report['per_class'], key=lambda row: -row[2])
    shown = order[:20] + order[-20:]
    assert [t.get_text() for t in axes.get_yticklabels()] == [name for name, _, _ in shown]
    assert [bar.get_width() for bar in axes.patches] == [score for _, _, score in shown]
    mean = np.mean([score for _, _, score in order])
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert len({*colors[:20]}) == len({*colors[20:]}) == 1 and colors[0] != colors[-1]
    assert any(np.allclose(line.get_xdata(), mean) for line in axes.get_lines())
    assert '… 60 more …' in {t.get_text() for t in axes.texts}
    assert f' {100 * shown[0][2]:.0f} %  of {shown[0][1]}' in {t.get_text() for t in axes.texts}


def test_the_confusion_matrix_has_true_classes_as_rows(monkeypatch):
    report = classified(['cat', 'dog'])
    report['confusion']['matrix'] = [[3, 1], [0, 8]]
    axes = drawn(drawing.confusion, report, [], monkeypatch=monkeypatch).axes[0]
    shares = np.ravel(axes.collections[0].get_array())
    np.testing.assert_array_equal(shares, [0.75, 0.25, 0, 1])
    places = {tuple(t.get_position()): t.get_text() for t in axes.texts}
    assert places == {(0.5, 0.5): '3', (1.5, 0.5): '1', (1.5, 1.5): '8'}
    assert axes.yaxis_inverted() and axes.get_ylabel() == 'true class'
    report['confusion']['matrix'] = [[3, 1]]
    with pytest.raises(ValueError, match=r'matrix \(1, 2\) does not fit 2 classes'):
        drawing.confusion(report, [], 'figure.png')


def test_the_worst_group_is_marked_and_intervals_are_drawn(monkeypatch):
    report = grouped()
    above, below = drawn(drawing.groups, report, [], monkeypatch=monkeypatch).axes
    colors = [bar.get_facecolor() for bar in above.patches]
    assert colors[0] == colors[1] == colors[3] != colors[2]
    assert [t.get_text().strip() for t in above.get_yticklabels()] == [
        f'group {k}' for k in range(4)
    ]
    [whiskers] = above.collections
    ends = [segment[:, 0].tolist() for segment in whiskers.get_segments()]
    rows = report['groups']['class and background']
    np.testing.assert_allclose(ends, [row[3:] for row in rows])
    assert above.get_xlabel() == 'worst group 10.0 %, 57.1 points below the best'
    assert below.get_title(loc='left') == 'continent'
    report['groups'] = {'x': [['a', 1, 0.5], ['b', 2, 0.5]]}
    [axes] = drawn(drawing.groups, report, [], monkeypatch=monkeypatch).axes
    assert axes.get_xlabel() == 'all groups are equal'
    assert len({bar.get_facecolor() for bar in axes.patches}) == 1 and not axes.collections


def test_reliability_is_accuracy_over_confidence_with_the_gap_between(monkeypatch):
    report = calibrated()
    report['calibration']['bins'] = [[0.4, 0.5, 30, 0.45, 0.6], [0.9, 1.0, 10, 0.95, 0.7]]
    above, below, *fitted = drawn(drawing.calibration, report, [], monkeypatch=monkeypatch).axes
    bars = [(bar.get_y(), bar.get_height()) for bar in above.patches]
    expected = [(0, 0.6), (0, 0.7), (0.7, 0.25), (0.6, -0.15)]  # accuracy, over-, underconfident
    np.testing.assert_allclose(sorted(b for b in bars if b[1]), sorted(expected))
    assert 'ECE 17.5 %' in {t.get_text() for t in above.texts}
    shares = [bar.get_height() for bar in below.patches]
    np.testing.assert_allclose(shares, [0.75, 0.25])
    assert 'accuracy 62.5 %, mean confidence 57.5 %' in below.get_xlabel()
    assert fitted[0].get_title(loc='left') == 'fitted: logits divided by 1.43'
    assert 'ECE 0.0 %' in {t.get_text() for t in fitted[0].texts}
    report['calibration']['bins'] = [[0.1, 0.2]]
    with pytest.raises(ValueError, match=r'bins \(1, 2\); expected rows of 5'):
        drawing.calibration(report, [], 'figure.png')


def test_models_stand_at_their_scores_with_intervals(monkeypatch):
    table = suite_table()
    [axes] = drawn(suites.tasks, table, monkeypatch=monkeypatch).axes
    found = [c.lines[0].get_xdata().tolist() for c in axes.containers]
    columns = [[row['values'][k] for row in table['tasks']] for k in range(3)]
    assert found == [columns[0], columns[1], columns[2][:-1]]
    lines = axes.containers[0].lines[2][0].get_segments()
    ends = [segment[:, 0].tolist() for segment in lines]
    np.testing.assert_allclose(ends, [row['intervals'][0] for row in table['tasks']])
    [axes] = drawn(suites.scatter, table, 'imagenet', 'pets', monkeypatch=monkeypatch).axes
    points = [line.get_xydata().tolist()[0] for line in axes.get_lines()]
    assert points == [[columns[k][0], columns[k][3]] for k in range(2)]


def test_robustness_has_the_line_of_the_table_on_axes_of_logits(monkeypatch):
    table = suite_table(5)
    panels = drawn(suites.robustness, table, monkeypatch=monkeypatch).axes
    assert [axes.get_title(loc='left') for axes in panels] == ['imagenet_v2', 'sketch']
    for k, axes in enumerate(panels, start=1):
        assert axes.get_xscale() == axes.get_yscale() == 'logit'
        equal, fit, *points = axes.get_lines()
        np.testing.assert_array_equal(equal.get_xdata(), equal.get_ydata())
        x, y = (np.log(z / (1 - z)) for z in (fit.get_xdata(), fit.get_ydata()))
        np.testing.assert_allclose(y, 0.9 * x - 0.3, rtol=1e-6, atol=1e-9)
        found = [line.get_xydata().tolist()[0] for line in points]
        values = [table['tasks'][i]['values'] for i in (0, k)]
        assert found == [list(pair) for pair in zip(*values, strict=True)]
    table['tasks'][0]['values'][:2] = [0.0, 1.0]  # which have no logit
    panels = drawn(suites.robustness, table, monkeypatch=monkeypatch).axes
    assert [len(axes.get_lines()) for axes in panels] == [5, 5]


def test_mistakes_show_the_true_and_the_predicted_class(monkeypatch):
    report = classified()
    figure = drawn(
        drawing.mistakes, *with_pictures(drawing.mistakes, report), monkeypatch=monkeypatch
    )
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 24 and drawing.mistakes.shows(report) == [3 * i for i in range(24)]
    words = [[t.get_text() for t in axes.texts] for axes in shown]
    assert words[0] == [f'{CLASSES[0]}  0.12', f'{CLASSES[1]}  0.34']
    del report['mistakes'][0]['score_of_label']  # a probe's
    figure = drawn(
        drawing.mistakes, *with_pictures(drawing.mistakes, report), monkeypatch=monkeypatch
    )
    assert [t.get_text() for t in figure.axes[0].texts] == [CLASSES[0], f'{CLASSES[1]}  0.34']


def test_queries_mark_what_is_right(monkeypatch):
    report = queries_report(2)
    images = pictures(12)
    figure = drawn(drawing.queries, report, images, monkeypatch=monkeypatch)
    assert drawing.queries.shows(report) == [0, 1, *range(40, 45), *range(40, 45)]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(shown, images)
    bold = {t.get_text() for t in texts(figure) if t.get_weight() == 'bold'}
    captions = {query['top'][i][0] for i, query in enumerate(report['queries']['image_to_text'])}
    assert {c[:50] for c in captions} <= {t[:50] for t in bold} | {c[:50] for c in bold}
    marked = [bool(axes.patches) for axes in figure.axes if axes.images][2:]
    assert marked == [True, False, False, False, False, False, True, False, False, False]
    words = {t.get_text() for t in texts(figure)}
    assert {'its first caption has rank 1', 'its first caption has rank 701'} <= words
    assert any('recall@1/5/10: 5.0 / 25.0 / 50.0 %, median rank 1,234' in t for t in words)


def test_runs_are_compared_in_one_color_each(monkeypatch):
    runs = {'one': run_rows(2000), 'two': run_rows(1000)}
    runs['two'].append({'step': 1000, 'other/top1': 0.5})
    scores = SCORES | {'other/top1': evals.score(0.5)}
    figure = drawn(drawing.compared, runs, monkeypatch=monkeypatch, scores=scores)
    panels = {axes.get_title(loc='left'): axes for axes in figure.axes}
    first, *_, last = panels
    assert (first, last) == ('Loss', 'Pairs per second')
    assert {'zeroshot top-1', 'retrieval image → text recall@10', 'other top-1'} <= {*panels}
    handles = {h.get_color() for legend in figure.legends for h in legend.legend_handles}
    colors = [line.get_color() for line in panels['zeroshot top-1'].get_lines()]
    assert len({*colors}) == 2 and {*colors} == handles
    assert [line.get_color() for line in panels['other top-1'].get_lines()] == colors[1:]
    ends = [line.get_xdata()[-1] for line in panels['zeroshot top-1'].get_lines()]
    assert ends == [2000, 800]
    with pytest.raises(ValueError, match='expected rows with a "loss"'):
        drawing.compared({'a': [], 'b': [{'step': 1}]}, 'figure.png')


def test_training_shows_a_panel_for_each_kind_of_number_that_there_is(monkeypatch):
    def titles(rows, **scores):
        found = SCORES | {f'x/{name}': score for name, score in scores.items()}
        figure = drawn(drawing.training, rows, monkeypatch=monkeypatch, scores=found)
        return [axes.get_title(loc='left') for axes in figure.axes if axes.get_title(loc='left')]

    assert titles(run_rows()) == [
        'Loss',
        'Evaluations',
        'Batch accuracy',
        'Learning rate and logit scale',
        'Gradient',
        'Speed',
    ]
    assert titles([{'step': 1, 'loss': 2.0, 'logit_scale': 14.3}]) == ['Loss', 'Logit scale']
    assert titles([{'step': 5, 'x/accuracy': 0.5}], accuracy=evals.score(0.5)) == ['Evaluations']
    scores = {'nll': evals.score(2, better='lower', unit='nats'), 'top1': evals.score(0.5)}
    rows = [{'step': 5, 'x/nll': 2.0, 'zeroshot/top1': 0.5}]
    assert titles(rows, nll=scores['nll']) == ['Evaluations'] * 2
    assert titles(rows, **scores) == ['Evaluations']  # of the usual headlines only
    counts = {'skipped/nonfinite': 0, 'bad_records/empty': 1}
    assert titles([{'step': 1, 'loss': 2.0, **counts}]) == ['Loss']


def test_training_draws_headline_numbers_and_the_last_word_on_a_step(monkeypatch):
    rows = [
        {'step': 20, 'zeroshot/top1': 0.1, 'zeroshot/top5': 0.7, 'zeroshot/top10': 0.8},
        {'step': 10, 'zeroshot/top1': 0.3, 'retrieval/text_to_image/recall@100': 0.9},
        {'step': 20, 'zeroshot/top1': 0.625, 'retrieval/text_to_image/recall@10': 0.5},
    ]
    names = ['zeroshot/top1', 'zeroshot/top5', 'zeroshot/top10']
    names += [f'retrieval/text_to_image/recall@{k}' for k in (10, 100)]
    scores = dict.fromkeys(names, evals.score(0.5))
    [axes] = drawn(drawing.training, rows, monkeypatch=monkeypatch, scores=scores).axes
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert lines == [[[10, 0.3], [20, 0.625]], [[20, 0.5]]]
    words = {t.get_text() for t in texts(axes)}
    assert {'62.5 %  zeroshot top-1', '50.0 %  retrieval text → image recall@10'} <= words


def test_the_smooth_line_is_the_mean_of_its_surroundings(monkeypatch):
    rng = np.random.default_rng(0)
    noisy = [5 + rng.normal() for _ in range(400)]
    rows = [{'step': n, 'loss': v} for n, v in enumerate(noisy)]
    rows[200]['loss'] = math.nan
    [axes] = drawn(drawing.training, rows, monkeypatch=monkeypatch).axes
    raw, smooth = (line.get_ydata() for line in axes.get_lines())
    np.testing.assert_array_equal(raw, [row['loss'] for row in rows])
    assert smooth[100] == pytest.approx(np.mean(noisy[95:106]))
    assert smooth[0] == pytest.approx(np.mean(noisy[:6]))
    assert smooth[202] == pytest.approx(np.mean(noisy[197:200] + noisy[201:208]))
    assert np.flatnonzero(np.isnan(smooth)).tolist() == [200]  # a gap is shown, not bridged


@pytest.mark.parametrize(('values', 'scale'), [([9, 3, 0.3], 'log'), ([9, 3, 1], 'linear')])
def test_a_wide_loss_gets_a_log_scale(values, scale, monkeypatch):
    rows = [{'step': n, 'loss': v} for n, v in enumerate(values)]
    [axes] = drawn(drawing.training, rows, monkeypatch=monkeypatch).axes
    assert axes.get_yscale() == scale


def test_a_run_that_broke_is_drawn(tmp_path):
    rows = [
        {'step': n, 'loss': math.nan, 'grad_norm': math.nan, 'x/top1': math.nan} for n in (1, 2)
    ]
    scores = {'x/top1': evals.score(0)}
    drawing.training(rows, tmp_path / 'training.png', scores=scores)
    check_png(tmp_path / 'training.png', (1200, 2200), (300, 1300))


@pytest.mark.parametrize('rows', [[], [{'step': 1, 'seconds': 3.0}]])
def test_training_without_any_curve_is_an_error(rows, tmp_path):
    with pytest.raises(ValueError, match='expected rows with a "loss"'):
        drawing.training(rows, tmp_path / 'training.png')


@pytest.mark.parametrize('values', [[-0.4, -0.1], [-0.2, 0.3], [0.5, 1.7]])
def test_scores_below_0_and_above_1_are_inside_the_axes(values, monkeypatch):
    scores = {'zeroshot/top1': evals.score(values[0])}
    rows = [{'step': k, 'zeroshot/top1': value} for k, value in enumerate(values)]
    [axes] = drawn(drawing.training, rows, monkeypatch=monkeypatch, scores=scores).axes
    low, high = axes.get_ylim()
    assert low <= min(0, *values) and max(0, *values) < high
    assert low < values[0] < high and high - low > 0.1


def test_zero_shot_marks_the_right_class_and_says_the_scores(monkeypatch):
    report = zero_shot_report(2)
    report['examples'][0] |= {'label': 'red star', 'top': [['red star', 0.3], ['blue disc', -0.1]]}
    report['examples'][1] |= {'label': 'red star', 'top': [['blue disc', 0.4], ['red star', 0.2]]}
    figure = drawn(drawing.zero_shot, report, pictures(2), monkeypatch=monkeypatch)
    bars = [axes for axes in figure.axes if axes.patches]
    assert [axes.get_title(loc='left') for axes in bars] == ['✓ red star', '✗ red star']
    widths = [[bar.get_width() for bar in axes.patches] for axes in bars]
    assert widths == [[0.3, -0.1], [0.4, 0.2]]
    colors = [[bar.get_facecolor() for bar in axes.patches] for axes in bars]
    assert colors[0] == colors[1][::-1]
    assert colors[0][0] != colors[0][1]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(shown, pictures(2))
    # One scale for all: bars of different pictures can be compared.
    assert bars[0].get_xlim() == bars[1].get_xlim()
    words = {t.get_text() for t in texts(figure)}
    assert 'top-1 91.2 %   ·   top-5 99.0 %   ·   10,000 images   ·   6 classes' in words


def test_similarity_puts_pictures_in_columns_and_texts_in_lines(monkeypatch):
    report = similarity_report(2)
    report['similarity'] |= {'texts': ['one', 'two'], 'matrix': [[0.11, 0.12], [0.21, 0.22]]}
    figure = drawn(drawing.similarity, report, pictures(2), monkeypatch=monkeypatch)
    heat = figure.axes[0]
    assert [t.get_text() for t in heat.get_yticklabels()] == ['one', 'two']
    cells = {t.get_text(): t for t in heat.texts}
    places = {name: tuple(t.get_position()) for name, t in cells.items()}
    assert places == {
        '0.11': (0.5, 0.5),
        '0.12': (0.5, 1.5),
        '0.21': (1.5, 0.5),
        '0.22': (1.5, 1.5),
    }
    assert heat.yaxis_inverted()
    shown = [axes for axes in figure.axes if axes.images]
    assert shown[0].get_position().x0 < shown[1].get_position().x0
    np.testing.assert_array_equal([axes.images[0].get_array() for axes in shown], pictures(2))
    colors = heat.collections[0].get_array()
    np.testing.assert_array_equal(np.ravel(colors), [0.11, 0.21, 0.12, 0.22])
    assert [name for name, t in cells.items() if t.get_weight() == 'bold'] == ['0.12', '0.22']
    outlined = [tuple(np.round(box.get_xy())) for box in heat.patches]
    assert outlined == [(0, 0), (1, 1)]
    words = {t.get_text() for t in texts(figure)}
    assert 'own text nearest for 1 of 2 images   ·   own image nearest for 1 of 2 texts' in words


def test_ties_count_against_the_right_one_but_not_among_equal_texts(monkeypatch):
    report = similarity_report(3)
    report['similarity'] |= {'texts': ['one', 'one', 'two'], 'matrix': [[0.1] * 3] * 3}
    figure = drawn(drawing.similarity, report, pictures(3), monkeypatch=monkeypatch)
    assert any('nearest for 0 of 3 images' in t.get_text() for t in texts(figure))
    report['similarity']['matrix'] = [[0.3, 0.3, 0.1], [0.3, 0.3, 0.1], [0.2, 0.2, 0.2]]
    figure = drawn(drawing.similarity, report, pictures(3), monkeypatch=monkeypatch)
    words = 'own text nearest for 2 of 3 images   ·   own image nearest for 3 of 3 texts'
    assert words in {t.get_text() for t in texts(figure)}


@pytest.mark.parametrize('shape', [(40, 40), (20, 90, 3), (300, 30, 3)])
def test_pictures_may_be_gray_and_of_any_shape(shape, monkeypatch):
    images = [np.full(shape, 200, np.uint8)] * 2
    reports = {drawing.zero_shot: zero_shot_report(2), drawing.similarity: similarity_report(2)}
    for draw, report in reports.items():
        figure = drawn(draw, report, images, monkeypatch=monkeypatch)
        shown = [axes.images[0] for axes in figure.axes if axes.images]
        assert [image.get_array().shape for image in shown] == [shape, shape]
        assert {image.get_cmap().name for image in shown} == {'gray'}
        assert {image.axes.get_aspect() for image in shown} == {1.0}


def test_missing_pictures_and_crooked_matrices_are_errors(tmp_path):
    with pytest.raises(ValueError, match='2 images for the 3 examples'):
        drawing.zero_shot(zero_shot_report(3), pictures(2), tmp_path / 'a.png')
    with pytest.raises(ValueError, match='0 images for the 0 examples'):
        drawing.zero_shot(zero_shot_report(0), [], tmp_path / 'a.png')
    report = similarity_report(3)
    report['similarity']['matrix'].pop()
    with pytest.raises(ValueError, match=r'matrix \(2, 3\) does not fit 3 texts'):
        drawing.similarity(report, pictures(3), tmp_path / 'a.png')


def test_write_all_draws_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(_style, 'DPI', 40)  # to be quick
    writer = metrics.JsonlWriter(tmp_path / 'metrics.jsonl')
    for row in run_rows(100):
        writer.write_scalars(row.pop('step'), row)
    writer.close()
    (tmp_path / 'evals').mkdir()
    reports = {
        'a_zeroshot': zero_shot_report(14),
        'b_retrieval': similarity_report(),
        'c_zeroshot': zero_shot_report(2) | {'data': 'folder:other'},
        'd_linear_probe': {
            'type': 'linear_probe',
            'data': 'folder:test',
            'scores': {'accuracy': evals.score(0.5)},
        },
    }
    for name, report in reports.items():
        (tmp_path / 'evals' / f'{name}.json').write_text(json.dumps(report))
    asked = []

    def load_images(spec, indices):
        asked.append((spec, indices))
        return pictures(len(indices))

    written = drawing.write_all(tmp_path, load_images)
    names = ['training', 'zero_shot', 'similarity', 'zero_shot_c_zeroshot']
    assert written == [tmp_path / 'plots' / f'{name}.png' for name in names]
    assert sorted(written) == sorted((tmp_path / 'plots').iterdir())
    assert asked == [
        ('folder:test', [10 * i for i in range(12)]),
        ('folder:pairs', list(range(100, 106))),
        ('folder:other', [0, 10]),
    ]


def test_write_all_wants_a_run_directory_and_whole_reports(tmp_path):
    with pytest.raises(ValueError, match=r'no metrics\.jsonl found.*run directory'):
        drawing.write_all(tmp_path, None)
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n')
    assert len(drawing.write_all(tmp_path, None)) == 1
    (tmp_path / 'evals').mkdir()
    (tmp_path / 'evals' / 'zeroshot.json').write_text('{"eval": "zeros')
    with pytest.raises(ValueError, match=r'zeroshot\.json: not valid JSON'):
        drawing.write_all(tmp_path, None)


@pytest.mark.parametrize(
    'wrong',
    [
        {'options': [1]},
        {'scores': {'top1': 0.5}},
        {'examples': [1]},
        {'examples': [{'index': 0, 'label': 'red star', 'top': 3}]},
        {'mistakes': 5},
        {'similarity': [1]},
        {'groups': [1]},
        {'groups': {'x': [['a']]}},
        {'calibration': 5},
    ],
)
def test_a_malformed_report_is_named(tmp_path, wrong):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / 'evals').mkdir()
    path = tmp_path / 'evals' / 'zs.json'
    path.write_text(json.dumps(classified() | wrong))
    with pytest.raises(ValueError, match=r'zs\.json: not '):
        drawing.write_all(tmp_path, lambda spec, indices: pictures(len(indices)))


def test_the_global_state_of_matplotlib_stays_as_it_was(tmp_path):
    program = """
import sys
import matplotlib
before = matplotlib.rcParams.copy()
from clip_jax.reports import drawing
drawing.training([{'step': 1, 'loss': 1.0}], sys.argv[1])
assert matplotlib.rcParams.copy() == before
assert 'matplotlib.pyplot' not in sys.modules
"""
    command = [sys.executable, '-c', program, str(tmp_path / 'training.png')]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
