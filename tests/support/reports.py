"""Small reports and metrics of runs, made by hand, for tests of figures and pages."""

import math

import numpy as np

from clip_jax import evals


def flat(report):
    """The keys of a report, with its scores' values, counts and info at the top level."""
    scores = {name: score['value'] for name, score in report['scores'].items()}
    rest = {k: v for k, v in report.items() if k not in ('scores', 'counts', 'info')}
    return {**scores, **report.get('counts', {}), **report.get('info', {}), **rest}


CLASSES = [f'{color} {shape}' for color in ('red', 'blue', 'green') for shape in ('star', 'disc')]
DIRECTIONS = 'image_to_text', 'text_to_image'
LONG = 'a class with $5_{ and $^ and far too many words for the place that there is'


def run_rows(steps=2000, every=10):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(every, steps + 1, every):
        done = step / steps
        accuracy = done**0.5 * rng.uniform(0.8, 1.0)
        rows.append(
            {
                'step': step,
                'loss': 6 * math.exp(-4 * done) * rng.uniform(0.9, 1.1),
                'accuracy/image_to_text': accuracy,
                'accuracy/text_to_image': accuracy**2,
                'logit_scale': 14.3 + 40 * done,
                'learning_rate': 5e-4 * min(1, 10 * done),
                'grad_norm': rng.lognormal(),
                'pairs_per_second': rng.normal(400, 10),
                'input_wait': rng.uniform(0, 0.05),
            }
        )
        if step % 400 == 0:
            keys = ['zeroshot/top1', 'zeroshot_all/top1', 'retrieval/image_to_text/recall@10']
            rows.append({'step': step, **dict.fromkeys(keys, 0.9 * done)})
    return rows


# The scores of `run_rows`, by their keys.
SCORES = {
    'zeroshot/top1': evals.score(0.9),
    'zeroshot_all/top1': evals.score(0.9),
    'retrieval/image_to_text/recall@10': evals.score(0.9),
}


def pictures(count):
    return list(np.random.default_rng(1).integers(0, 256, [count, 48, 48, 3], np.uint8))


def zero_shot_report(count=12, classes=CLASSES):
    rng = np.random.default_rng(2)
    examples = []
    for i in range(count):
        top = [[classes[j], 0.4 - 0.05 * n] for n, j in enumerate(rng.permutation(6)[:5])]
        examples.append({'index': 10 * i, 'label': classes[i % 6], 'top': top})
    return {
        'type': 'zeroshot',
        'data': 'folder:test',
        'scores': {'top1': evals.score(0.912), 'top5': evals.score(0.99)},
        'counts': {'images': 10_000, 'classes': 6},
        'info': {'chance': 1 / 6},
        'examples': examples,
    }


def similarity_report(count=6, text='a picture of a small {} in the middle of a quiet background'):
    matrix = 0.1 * np.random.default_rng(3).random([count, count]) + 0.2 * np.eye(count)
    texts = [text.replace('{}', CLASSES[i % 6]) for i in range(count)]
    indices = list(range(100, 100 + count))
    found = {'indices': indices, 'texts': texts, 'matrix': matrix.tolist()}
    scores = {f'{way}/recall@{k}': evals.score(k / 20) for way in DIRECTIONS for k in (1, 5, 10)}
    rank = evals.score(1234, better='lower', unit='rank')
    scores |= {f'{way}/median_rank': rank for way in DIRECTIONS}
    return {
        'type': 'retrieval',
        'data': 'folder:pairs',
        'scores': scores,
        'counts': {'images': 1000, 'texts': 5000},
        'similarity': found,
    }


def classified(classes=CLASSES, value=0.7):
    """A report with all tables of a classifier."""
    rng, count = np.random.default_rng(4), len(classes)
    matrix = rng.integers(0, 5, [count, count]) + 20 * np.eye(count, dtype=int)
    score = {'label': 0.12, 'guess': 0.34}
    mistakes = [
        {
            'index': 3 * i,
            'label': classes[i % count],
            'guess': classes[(i + 1) % count],
            'score': score['guess'],
            'score_of_label': score['label'],
        }
        for i in range(24)
    ]
    report = zero_shot_report(12, [*classes, *CLASSES][:6])
    return {
        **report,
        'scores': report['scores'] | {'mean_per_class': evals.score(value)},
        'per_class': [[name, 100 + k, value * rng.random()] for k, name in enumerate(classes)],
        'confusion': {'classes': list(classes), 'matrix': matrix.tolist(), 'of': count},
        'mistakes': mistakes,
    }


def calibrated(count=15, fitted=True):
    """A report with the calibration of a classifier that is too sure of itself."""
    bins = [[k / 15, (k + 1) / 15, 10 + k, (k + 0.6) / 15, (k + 0.3) / 18] for k in range(count)]
    found = {'activation': 'softmax', 'temperature': 1.0, 'bins': bins}
    if fitted:
        found['fitted'] = {'temperature': 1.43, 'bins': [[*row[:4], row[3]] for row in bins]}
    return {**zero_shot_report(), 'calibration': found}


def grouped(groups=4, title='class and background', interval=True):
    """A report with the scores of groups; the third is the worst."""
    rows = []
    for k in range(groups):
        value = 0.1 if k == 2 else 0.5 + 0.4 * (k % 7) / 7
        ends = [value - 0.05, value + 0.04] if interval else []
        rows.append([f'group {k} {LONG if title is LONG else ""}', 100 + k, value, *ends])
    return {**zero_shot_report(), 'groups': {title: rows, 'continent': rows[:3]}}


def suite_table(models=3, tasks=('imagenet', 'imagenet_v2', 'sketch', 'pets'), prefix='runs/'):
    """The table of a suite; the last model lacks the last task."""
    rng = np.random.default_rng(5)
    rows = []
    for k, task in enumerate(tasks):
        values = (rng.uniform(0.3, 0.8, models) - 0.05 * k).tolist()
        rows.append(
            {
                'task': task,
                'type': 'zeroshot',
                'data': f'folder:{task}',
                'score': 'top1',
                'better': 'higher',
                'unit': 'fraction',
                'values': values,
                'intervals': [[value - 0.02, value + 0.02] for value in values],
                'states': ['done'] * models,
                'messages': [''] * models,
            }
        )
    rows[-1]['values'][-1] = rows[-1]['intervals'][-1] = None
    complete = [row['values'] for row in rows[:-1]] or [[0.5] * models]
    means = np.mean(complete, axis=0).tolist()
    lines = [
        {'task': task, 'slope': 0.9, 'intercept': -0.3, 'values': [0.01] * (models - 1) + [None]}
        for task in tasks[1:3]
    ]
    return {
        'models': [f'{prefix}{k}' for k in range(models)],
        'tasks': rows,
        'means': [{'type': 'zeroshot', 'tasks': len(rows) - 1, 'values': means}],
        'robustness': {'of': tasks[0], 'tasks': lines},
        'parameters': [int(1.5e8 * 3**k) for k in range(models)],
        'versions': {'jax': '0.10.2'},
    }


def queries_report(count=6, text='two dogs run over wet sand beside the sea in the evening light'):
    from_image = [
        {
            'index': i,
            'rank': 1 + 700 * i,
            'top': [[f'{k} {text}', 0.3 - k / 20, k == i] for k in range(5)],
        }
        for i in range(count)
    ]
    from_text = [
        {'text': text, 'index': i, 'rank': 1 + i, 'top': [[40 + k, 0.3, k == i] for k in range(5)]}
        for i in range(count)
    ]
    queries = dict(zip(DIRECTIONS, (from_image, from_text), strict=True))
    return {**similarity_report(), 'queries': queries}


def probe_report():
    sweep = [[10.0**c, 0.8 - 0.01 * c**2] for c in (-6, -4, -2, 0, 2, 4, 6, 1)]
    return {
        'type': 'linear_probe',
        'data': 'folder:test',
        'scores': {'accuracy': evals.score(0.8)},
        'counts': {'images': 1000, 'classes': 6},
        'info': {'C': 1.0},
        'sweep': sweep,
    }


def shots_report():
    shots = [[k, k / 20, 0.02, [k / 20 - 0.02, k / 20, k / 20 + 0.02]] for k in (1, 2, 4, 8, 16)]
    return {
        'type': 'fewshot',
        'data': 'folder:test',
        'scores': {f'accuracy@{k}': evals.score(mean) for k, mean, *_ in shots},
        'counts': {'images': 300, 'classes': 6},
        'shots': shots,
    }
