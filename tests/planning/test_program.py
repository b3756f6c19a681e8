"""Compiled programs as data."""

import pytest

from clip_jax.planning import program

PROGRAM = """HloModule step

%condition (p: (s32[], f32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[])) -> (s32[], f32[]) {
  %x = bf16[512,8]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %f = bf16[512]{0} fusion(%x, %missing), kind=kLoop, calls=%inner, metadata={op_name="a/b"}
}

%inner (p: bf16[512,8]) -> bf16[512] {
  ROOT %add.1 = bf16[512]{0} reduce(%y, %z), to_apply=%sum
}

%branch (p: f32[]) -> f32[] {
  ROOT %negated = f32[] negate(%p)
}

%other (p: f32[]) -> f32[] {
  ROOT %positive = f32[] abs(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %w = (s32[]{:T(128)}, /*index=1*/f32[4,3]{1,0}) while(%t), condition=%condition, body=%body STATED
  %c = f32[] conditional(%i, %a, %b), branch_computations={%branch, %other}
  ROOT %k = bf16[8] custom-call(bf16[8]{0} %c, %w), custom_call_target="tpu_custom_call", KERNEL
}
"""


def times(stated: str) -> dict[str, tuple[int, bool]]:
    runs = program.read(PROGRAM.replace('STATED', stated)).runs()
    return {run.instruction.name: (run.times, run.scheduled) for run in runs}


def test_a_loop_runs_as_often_as_its_condition_or_the_compiler_says():
    found = times('')
    assert found['f'] == (12, True) and found['add.1'] == (12, False)
    assert found['w'] == (1, True)
    found = times('backend_config={"known_trip_count":{"n":"7"}}')
    assert found['f'] == (7, True) and found['add.1'] == (7, False)
    # One branch is taken.
    assert found['negated'] == (1, True) and 'positive' not in found


def test_an_instruction_has_its_results_operands_and_name():
    read = program.read(PROGRAM)
    loop, kernel = (read.computations['main'][name] for name in ('w', 'k'))
    assert [x.shape for x in loop.results] == [(), (4, 3)] and loop.operands == ('t',)
    assert kernel.operands == ('c', 'w') and kernel.is_kernel and not loop.is_kernel
    fusion = next(run for run in read.runs() if run.instruction.name == 'f')
    assert fusion.instruction.op_name == 'a/b' and fusion.instruction.calls == 'inner'
    (x,), missing = read.arrays(fusion)
    assert x == ('bf16', (512, 8), (0, 1), (8, 128), 1) and missing == ()


@pytest.mark.parametrize(
    ('text', 'padded', 'unpadded'),
    [
        ('f32[10,200]{1,0:T(8,128)}', 16 * 256 * 4, 8_000),
        ('bf16[10,200]{0,1:T(8,128)(2,1)}', 128 * 200 * 2, 4_000),
        ('bf16[3,197,768]{2,0,1:T(8,128)(2,1)S(1)}', 197 * 8 * 768 * 2, 3 * 197 * 768 * 2),
        ('f32[]{:T(128)}', 512, 4),
        ('f32[5]{0:T(8,128)}', 8 * 128 * 4, 20),
        ('f32[6,7]{1,0}', 168, 168),
        ('pred[6,7]', 42, 42),
    ],
)
def test_an_array_takes_whole_tiles(text, padded, unpadded):
    (array,) = program.arrays(text)
    assert (array.bytes, array.unpadded_bytes) == (padded, unpadded)
