"""The scores of a run, as checkpoints are kept by them."""

import pytest
from etils import epath
from ml_collections import ConfigDict

from clip_jax import evals
from clip_jax.metrics import MultiWriter
from clip_jax.runtime import retention
from clip_jax.training.evaluations import Evaluations

CONFIG = ConfigDict(
    {'checkpoint': {'keep_best': 1, 'best_metric': 'gap/gap'}, 'evals': {'gap': {'type': 'gap'}}}
)


def evaluations(workdir) -> Evaluations:
    return Evaluations(CONFIG, None, {'gap': None}, epath.Path(workdir), None, None, None)


@pytest.mark.parametrize(('better', 'best'), [('lower', 20), ('higher', 10)])
def test_the_direction_of_the_best_is_what_the_evaluation_declares(better, best, tmp_path):
    of_run, lines = evaluations(tmp_path), []
    for step, value in (10, 0.9), (20, 0.3), (30, 0.5):
        report = {'scores': {'gap': evals.score(value, better=better)}}
        scores = of_run.write(step, {'gap': report}, MultiWriter([]))
        lines.append(f'{{"step": {step}, "gap/gap": {scores["gap/gap"]}}}\n')
    kept = retention.kept([10, 20, 30], of_run.best, last=1, every=0, best=1)
    assert kept == {best, 30}

    (tmp_path / 'metrics.jsonl').write_text(''.join(lines))
    resumed = evaluations(tmp_path)
    resumed.recall(30)
    assert resumed.best == of_run.best


def test_checkpoints_are_kept_by_a_score_that_there_is(tmp_path):
    with pytest.raises(ValueError, match=r'best_metric.*gap/gap.*gap/other'):
        evaluations(tmp_path).check_best(['gap/other'])
