"""Cycles of the machine code that libtpu writes down."""

import pytest

from clip_jax.planning import schedules

# Two bundles, a pipelined loop of ten turns of which two fill it, in it a loop of eight turns by
# two with a bundle from around it, and a loop whose end is known only when it runs.
SCHEDULE = """= control target key start
LB: loop body
= control target key end

     0   :  { %2 = vsyncpa [#allocation1], 0 }
   0x1   :  { %s6 = smov 0  ;;  %s7 = smov 0 }
   0x2 LB: > { %s11 = sadd.s32 1, %s10 /* iteration index, stage = 1 */  ;;  %s10 = sphi %s6, %s11 }
   0x3   : > { %p9 = scmp.ge.s32.totalorder %s10, 1 /* iteration index, stage = 2 */ }
   0x4   :  {}
   0x5   : > { %43 = sbr.rel (%p9) target = $region16 }
   0x6 LB: >> { %s4 = sadd.s32 2, %s5  ;;  %s5 = sphi %s7, %s4 }
   0x6   : > { %s9 = scalar_lea.hbm (%p12), %s8, %s7 }
   0x7   : >> { %p12 = scmp.ge.s32.totalorder %s4, 16 /* loop exit test */ }
   0x8   : > { %44 = sbr.rel (!%p12) target = $region7 }
   0x9 PF: > { %p13 = scmp.ge.s32.totalorder %s11, 12 /* loop exit test */ }
   0xa LB: >> { %p14 = scmp.gt.s32.totalorder %s4, %s3 }
   0xb   : > { %45 = sbr.rel (!%p14) target = $region8 }
   0xc   : > { %v1 = vadd.f32 %v2, %v3 }
   0xd   :  { %46 = sbr.rel (!%p13) target = $region9 }
   0xe   :  { %3 = vsyncpa [#allocation1], 1 }
"""


def test_bundles_in_loops_count_as_often_as_they_run(tmp_path):
    inner, unknown, outer = 4 * 8, 1, 4 + 1 + 1 + 1 + 1
    expected = 2 + 10 * (inner + unknown + outer) + 1
    assert schedules.cycles(SCHEDULE.splitlines()) == expected
    (tmp_path / '1795-fusion.7-01-final_bundles.txt').write_text(SCHEDULE)
    (tmp_path / '1795-a-b.2-01-final_bundles.txt').write_text('   0x1   :  { %s6 = smov 0 }\n')
    (tmp_path / '1795-fusion.7-00-schedule-analysis_final_bundles.txt').write_text('total: 7\n')
    assert schedules.read(tmp_path) == {'fusion.7': expected, 'a-b.2': 1}
    schedules.clear(tmp_path)
    with pytest.raises(ValueError, match='libtpu wrote none'):
        schedules.read(tmp_path)
