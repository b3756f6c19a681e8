"""Estimates of the seconds of compiled programs, by part."""

import re

import pytest

from clip_jax.planning import estimates, parts, program, roofline, schedules, topologies

# 1 GHz, 1 TFLOP/s, 1 GB/s.
CHIP = topologies.Chip(16, 1, 1, 1e9)
ROWS = 'f32[8,128]{1,0:T(8,128)}'
MLP = 'jit(step)/jvp(CLIP)/CLIP.encode_image/image/transformer/Block/mlp'
NORM = 'jit(step)/transpose(jvp(CLIP))/CLIP.encode_text/text/post_norm'

ADDED = f'metadata={{op_name="{MLP}/add"}}, backend_config={{"estimated_cycles":"1000"}}'
PRODUCT = f'metadata={{op_name="{MLP}/out/dot_general"}}'
CYCLES = 'backend_config={"estimated_cycles":"7"}'
KERNEL = (
    'custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(CLIP)/'
    'CLIP.encode_image/image/attention/short_attention/pallas_call"}, backend_config={'
    '"cost_estimate":{"flops":"50000000","transcendentals":"2048","bytes_accessed":"30000"}}'
)
PROGRAM = f"""HloModule step

%condition (p: (s32[], f32[])) -> pred[] {{
  %limit = s32[] constant(3)
}}

%body (p: (s32[], f32[])) -> (s32[], f32[]) {{
  %stack = bf16[3,100,200]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%p), index=0
  %sliced = bf16[100,200]{{1,0:T(8,128)(2,1)}} fusion(%stack, %i), calls=%slicing
  %added = bf16[100,200]{{1,0:T(8,128)(2,1)S(1)}} add(%sliced, %sliced), {ADDED}
  %stacked = bf16[3,100,200]{{2,1,0:T(8,128)(2,1)}} fusion(%stack, %added, %i), calls=%stacking
}}

%slicing (s: bf16[3,100,200]) -> bf16[100,200] {{
  %s = bf16[3,100,200]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %j = s32[]{{:T(128)}} parameter(1)
  %one = bf16[1,100,200]{{2,1,0:T(8,128)(2,1)}} dynamic-slice(%s, %j)
  ROOT %flat = bf16[100,200]{{1,0:T(8,128)(2,1)}} bitcast(%one)
}}

%stacking (s: bf16[3,100,200]) -> bf16[3,100,200] {{
  %t = bf16[3,100,200]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %new = bf16[100,200]{{1,0:T(8,128)(2,1)}} parameter(1)
  %k = s32[]{{:T(128)}} parameter(2)
  %wide = bf16[1,100,200]{{2,1,0:T(8,128)(2,1)}} bitcast(%new)
  ROOT %put = bf16[3,100,200]{{2,1,0:T(8,128)(2,1)}} dynamic-update-slice(%t, %wide, %k)
}}

%product (x: f32[8,128]) -> f32[8,128] {{
  %x = {ROWS} parameter(0)
  %w = f32[128,128]{{1,0:T(8,128)}} parameter(1)
  %c = {ROWS} convolution(%x, %w), dim_labels=bf_io->bf, {PRODUCT}
  ROOT %r = {ROWS} add(%c, %x), metadata={{op_name="{NORM}/add"}}
}}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {{
  %p = {ROWS} parameter(0)
  %q = f32[128,128]{{1,0:T(8,128)S(1)}} parameter(1)
  %loop = (s32[], bf16[3,100,200]) while(%t), condition=%condition, body=%body
  %f = {ROWS} fusion(%p, %q), calls=%product, {CYCLES}
  %n = {ROWS} negate(%f), metadata={{op_name="{NORM}/neg"}}
  %s = ({ROWS}, {ROWS}, u32[]) copy-start(%n)
  %a = {ROWS} all-reduce(%n), metadata={{op_name="jit(step)/psum"}}
  ROOT %k = bf16[8] custom-call(%a), {KERNEL}
}}
"""
TILED = 104 * 256 * 2  # bfloat16[100,200]
FLAT = 8 * 128 * 4
COMPILED = program.read(PROGRAM)
RUNS = {run.instruction.name: run for run in COMPILED.scheduled()}


@pytest.mark.parametrize(
    ('name', 'moved', 'flops'),
    [
        ('sliced', 2 * TILED, 0),  # one of three, and what it writes
        ('added', 2 * TILED, 0),  # twice its operand; the result stays in vector memory
        ('stacked', TILED, 0),  # in place, from vector memory
        ('f', 2 * FLAT, 2 * 8 * 128 * 128),
        ('s', 2 * FLAT, 0),
        ('a', 0, 0),
        ('k', 30_000, 50_000_000),
        ('loop', 0, 0),
    ],
)
def test_bytes_and_flops_of_an_instruction(name, moved, flops):
    index = re.compile(r', %[ijk]\b')
    compiled = program.read(index.sub('', PROGRAM))  # counters add 512 bytes
    runs = {run.instruction.name: run for run in compiled.scheduled()}
    assert roofline.traffic(compiled, runs[name]) == moved
    assert roofline.flops(compiled, runs[name]) == flops


@pytest.mark.parametrize(
    ('result', 'operands', 'attributes', 'flops'),
    [
        ('f32[6,7]', ('f32[6,5]', 'f32[5,7]'), 'dim_labels=bf_io->bf', 6 * 7 * 5),
        # A product of four matrices: the batch is an axis of the window.
        (
            'f32[4,6,7]',
            ('f32[4,6,5]', 'f32[4,5,7]'),
            'window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf',
            4 * 6 * 7 * 5,
        ),
        # Three of a query's heads: the padding around them is not multiplied.
        (
            'f32[2,3,4,5]',
            ('f32[2,1,1,6]', 'f32[3,4,6,5]'),
            'window={size=3x4 pad=2_2x3_3 rhs_reversal=1x1}, dim_labels=b01f_01io->b01f',
            2 * 3 * 4 * 5 * 6,
        ),
        (
            'f32[2,4,4,3]',
            ('f32[2,4,4,5]', 'f32[3,3,5,3]'),
            'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f',
            2 * 3 * 5 * (3 * 4 - 2) ** 2,
        ),
    ],
)
def test_padding_and_what_lies_between_matrices_is_no_product(result, operands, attributes, flops):
    left, right = operands
    text = f"""ENTRY %main (p: f32[]) -> f32[] {{
  %l = {left} parameter(0)
  %r = {right} parameter(1)
  ROOT %c = {result} convolution(%l, %r), {attributes}
}}
"""
    compiled = program.read(text)
    last = list(compiled.scheduled())[-1]
    assert roofline.flops(compiled, last) == 2 * flops


def test_a_product_of_matrices_that_is_called_one():
    text = """ENTRY %main (p: f32[]) -> f32[] {
  %l = f32[4,6,5] parameter(0)
  %r = f32[4,5,7] parameter(1)
  ROOT %c = f32[4,6,7] dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
}
"""
    compiled = program.read(text)
    assert roofline.flops(compiled, list(compiled.scheduled())[-1]) == 2 * 4 * 6 * 7 * 5


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        (
            'jvp(CLIP)/CLIP.encode_image/image/transformer/Block/attention/qkv/dot_general',
            'image attention',
        ),
        ('jvp(CLIP)/CLIP.encode_image/image/transformer/Block/attention_norm/mul', 'image norms'),
        ('jvp(CLIP)/CLIP.encode_image/image/attention_pool/mlp/out/add', 'image MLP'),
        ('jvp(CLIP)/CLIP.encode_image/image/stage_1/block_0/conv_1/conv', 'image rest'),
        ('jvp(CLIP)/CLIP.encode_image/image_projection/dot_general', 'image rest'),
        ('jvp(CLIP)/CLIP.encode_image/image/patch_embedding/dot_general', 'image embedding'),
        ('jvp(CLIP)/CLIP.encode_text/text/token_embedding/jit(_take)/gather', 'text embedding'),
        ('transpose(jvp(CLIP))/CLIP.encode_text/text/checkpoint/Block/mlp/in/add', 'text MLP'),
        ('jvp()/shard_map/while/body/dot_general', 'loss'),
        ('transpose(jvp(CLIP.scale_and_bias))/mul', 'loss'),
        ('jit(_where)/select_n', 'optimizer'),
    ],
)
def test_an_operation_belongs_to_the_part_that_its_modules_name(name, part):
    assert parts.of_name(f'jit(train_step)/{name}') == part
    assert parts.of_name('') == parts.of_name('broadcast') == 'other'


def test_instructions_belong_to_the_part_of_their_products_or_move_numbers():
    found = {
        name: parts.of(COMPILED, RUNS[name]) for name in ['sliced', 'added', 'f', 'n', 's', 'k']
    }
    assert found == {
        'sliced': ('copies', ''),
        'added': ('image MLP', 'forward'),
        'f': ('image MLP', 'forward'),  # though it ends in a norm
        'n': ('text norms', 'backward'),
        's': ('copies', ''),
        'k': ('image attention', 'forward'),
    }


def test_the_estimates_of_a_program_are_summed_by_part():
    found = estimates.of(PROGRAM, CHIP)
    rows = {(row['part'], row['direction']): row for row in found['parts']}
    mlp, attention = rows['image MLP', 'forward'], rows['image attention', 'forward']
    assert list(rows) == sorted(rows, key=lambda key: parts.PARTS.index(key[0]))
    assert mlp['bytes'] == 3 * 2 * TILED + 2 * FLAT
    assert mlp['seconds']['roofline'] == pytest.approx(mlp['bytes'] / 1e9)
    assert mlp['seconds']['compiler'] == pytest.approx((3 * 1000 + 7) / 1e9)
    # A kernel takes what it says that it needs; the compiler knows nothing of it.
    assert attention['seconds']['roofline'] == 50e6 / 1e12
    assert attention['seconds']['compiler'] == 8.6 * 2 / 1e9
    # A copy beside other work has bytes, and no seconds.
    copies = rows['copies', '']
    assert copies['seconds']['roofline'] == pytest.approx((copies['bytes'] - 2 * FLAT) / 1e9)
    assert sum(row['share'] for row in found['parts']) == pytest.approx(1)
    assert found['seconds'].keys() == {'compiler', 'roofline'}


def test_a_schedule_counts_where_it_is_longer_than_the_roofline():
    cycles = {'added': 10**6, 'f': 1, 'k': 5000, 'a': 10**9, 'loop': 10**9}
    found = estimates.of(PROGRAM, CHIP, cycles)
    rows = {(row['part'], row['direction']): row for row in found['parts']}
    mlp, attention = rows['image MLP', 'forward'], rows['image attention', 'forward']
    assert mlp['seconds']['schedule'] == pytest.approx(3 * 1e-3 + 2 * FLAT / 1e9)
    assert attention['seconds']['compiler'] == 5000 / 1e9
    assert attention['seconds']['schedule'] == 50e6 / 1e12
    assert found['scheduled'] == 1 and 'scheduled' not in estimates.of(PROGRAM, CHIP)
    assert estimates.of(PROGRAM, CHIP, {'f': 1})['scheduled'] == 7 / 3007
    # Collectives are left out, and what is in a loop counts there.
    assert found['seconds']['schedule'] < 0.01


def test_instructions_that_are_alike_share_a_schedule():
    twins = PROGRAM.replace(
        'ROOT %k',
        f"""%f.2 = {ROWS} fusion(%p, %q), calls=%product, {CYCLES}
  %f.3 = {ROWS} fusion(%p, %p), calls=%product, {CYCLES}
  ROOT %k""",
    )
    compiled = program.read(twins)
    assert schedules.matched(compiled, {'f': 12.0}) == {'f': 12.0, 'f.2': 12.0}
