"""`clip-jax checkpoint`: what it prints, and its exit codes."""

import json

from etils import epath

from clip_jax.runtime import checksums


def test_one_checkpoint_under_another_name_is_verified(run, tmp_path):
    best = tmp_path / 'best'
    (best / 'variables').mkdir(parents=True)
    (best / 'variables' / 'x').write_text('abc')
    checksums.write(epath.Path(best))
    code, out, _ = run('checkpoint', 'verify', best)
    assert code == 0 and ' MB  valid' in out and 'newest valid: best' in out
    (best / 'variables' / 'x').write_text('abd')
    code, out, _ = run('checkpoint', 'verify', best)
    assert code == 1 and 'CORRUPT' in out and 'newest valid: none' in out


def test_checkpoints_are_verified_without_their_numbers(run, tmp_path):
    step = tmp_path / 'checkpoints' / '3'
    (step / 'about').mkdir(parents=True)
    checksums.write(epath.Path(step))
    lines = tmp_path / 'metrics.jsonl'
    lines.write_text('{"step": 3, "loss": 2.5, "zs/top1": 0.5, "skipped/spike": 1}\n')
    score = {'value': 0.5, 'better': 'higher', 'unit': 'fraction'}
    report = {'type': 'zeroshot', 'data': 'folder:x', 'scores': {'top1': score}}
    (tmp_path / 'evals').mkdir()
    (tmp_path / 'evals' / 'zs.json').write_text(json.dumps(report))
    assert 'loss 2.5, zs/top1 0.5\n' in run('checkpoint', 'verify', tmp_path)[1]
    lines.write_text('{"step": 1}\n{"st\n{"step": 3, "loss": 2.5}\n')
    code, out, err = run('checkpoint', 'verify', tmp_path)
    assert code == 0 and 'newest valid: step 3' in out
    assert f'metrics are not shown: {lines}, line 2' in err


def test_only_verify_reads_samples(line, tmp_path):
    assert "'--sampled'" in line('checkpoint', 'list', tmp_path, '--sampled')
    assert "'--fast'" in line('checkpoint', 'verify', tmp_path, '--fast')
