"""Reading collectives off a compiled program's text."""

from experiments import compiled
from experiments import scaling_devices

# Shapes of an asynchronous permutation: source, target, two counters.
_PERMUTED = (
  '(s32[8,1]{0,1:T(1,128)}, s32[8,1]{0,1}, u32[]{:S(2)}, u32[]{:S(2)})'
)
_TEXT = f"""
  %ag = f32[64,128]{{1,0}} all-gather(%p), channel_id=1, dimensions={{0}}
  %s = {_PERMUTED} collective-permute-start(%b), channel_id=2
  %d = s32[8,1]{{0,1}} collective-permute-done(%s)
  %ars = (f32[10,4]{{1,0}}, bf16[6]{{0}}) all-reduce-start(%x, %y), channel_id=3
  ROOT %rs = pred[16]{{0}} reduce-scatter(%z), channel_id=4
  %ags = (f16[2,4]{{1,0}}, f16[16,4]{{1,0}}) all-gather-start(%q), channel_id=5
  %add = f32[9]{{0}} add(%u, %v), metadata={{op_name="all-gather("}}
"""


def test_every_collective_is_found_once_with_its_bytes():
  found = compiled.collectives(_TEXT)
  assert [(c.kind, c.shape, c.bytes) for c in found] == [
    ('all-gather', (64, 128), 64 * 128 * 4),
    ('collective-permute', (8, 1), 8 * 4),
    ('all-reduce', (10, 4), 10 * 4 * 4 + 6 * 2),
    ('reduce-scatter', (16,), 16),
    ('all-gather', (16, 4), 16 * 4 * 2),
  ]


def test_a_whole_table_is_known_by_its_shape():
  found = compiled.collectives(_TEXT)
  tables = {'memory': (64, 128), 'scattered': (16,), 'other': (128, 64)}
  assert compiled.whole_tables(found, tables) == ['memory']


def test_an_aim_without_its_figures_is_not_run():
  shapes = [
    ((1, 1), 2048),
    ((8, 1), 2048),
    ((1, 8), 2048),
    ((4, 2), 2048),
    ((8, 1), 16_384),
  ]
  rows = [
    {
      'shape': list(shape),
      'batch_size': size,
      'flops': 8.0 / (shape[0] * shape[1]),
    }
    for shape, size in shapes
  ]
  lines = [scaling_devices.line(aim) for aim in scaling_devices.judge(rows, {})]
  assert 'aim=strong_4x2_total_work value=1.0 wanted=<=2 met=yes' in lines
  assert (
    'aim=v5e_16x16_huge_train_gib_a_chip value=None wanted=<=15 met=not run'
  ) in lines
