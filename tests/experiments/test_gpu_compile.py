"""What a compiled GPU program launches and moves, read off XLA's texts."""

import json

import numpy as np
import pytest

from experiments import gpu_compile
from experiments import gpu_launches
from experiments import program_text

# As XLA of jax 0.10.2 writes them, cut to a few instructions and thunks.
_PROGRAM = """HloModule jit_step, is_scheduled=true

%gather_body (p.0: f32[1000,8], p.1: s32[4,1]) -> f32[4,8] {
  %p.0 = f32[1000,8]{1,0} parameter(0)
  %p.1 = s32[4,1]{1,0} parameter(1)
  ROOT %rows = f32[4,8]{1,0} gather(%p.0, %p.1), offset_dims={1}
}

%write_body (q.0: f32[1000,8], q.1: f32[4,8], q.2: s32[]) -> f32[1000,8] {
  %q.0 = f32[1000,8]{1,0} parameter(0)
  %q.1 = f32[4,8]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %dus = f32[1000,8]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)
}

%chain_condition (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] fusion(%c), kind=kLoop, calls=%gather_body
}

%chain_body (b: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %b = (s32[], f32[4,8]{1,0}) parameter(0)
  %b.0 = f32[4,8]{1,0} get-tuple-element(%b), index=1
  ROOT %turn = f32[4,8]{1,0} negate(%b.0)
}

%step_condition (d: (s32[], f32[1000,8])) -> pred[] {
  %d = (s32[], f32[1000,8]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%step_body (s: (s32[], f32[1000,8])) -> (s32[], f32[1000,8]) {
  %s = (s32[], f32[1000,8]{1,0}) parameter(0)
  %table = f32[1000,8]{1,0} get-tuple-element(%s), index=1
  %ids = s32[4,1]{1,0} constant({ {0}, {1}, {2}, {3} })
  %read = f32[4,8]{1,0} fusion(%table, %ids), kind=kLoop, calls=%gather_body
  %search = (s32[], f32[4,8]{1,0}) while(%read), condition=%chain_condition, \
body=%chain_body, backend_config={"known_trip_count":{"n":"11"}}
  %chain = (s32[], f32[4,8]{1,0}) while(%read), condition=%chain_condition, \
body=%chain_body, metadata={op_name="update/while"}
  %zero = s32[] constant(0)
  ROOT %write = f32[1000,8]{1,0} fusion(%table, %read, %zero), kind=kLoop, \
calls=%write_body
}

ENTRY %main (a: f32[1000,8]) -> f32[1000,8] {
  %a = f32[1000,8]{1,0} parameter(0)
  ROOT %steps = f32[1000,8]{1,0} while(%a), condition=%step_condition, \
body=%step_body, backend_config={"known_trip_count":{"n":"2"}}
}
"""

_THUNKS = """\
001: kCopy         [source       | next=002 (1)] kCopy
002: kWhile        [prev=001 (1) | sink        ]
condition:
    003: kCustomKernel [source | sink] more grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=006 (1)]
        004: kCustomKernel [source | sink] read grid: [16, 1, 1]
        005: kCopy         [source | sink] kCopy
    006: kWhile              [prev=000 (1) | next=009 (1)]
condition:
        007: kCustomKernel [source | sink] less grid: [1, 1, 1]
      body:
        008: kCustomKernel [source | sink] turn grid: [1, 1, 1]
    009: kWhile              [prev=006 (1) | next=012 (1)]
condition:
        010: kCustomKernel [source | sink] less grid: [1, 1, 1]
      body:
        011: kCustomKernel [source | sink] turn grid: [1, 1, 1]
    012: kCustomKernel       [prev=009 (1) | sink] write grid: [1, 1, 1]
"""

_NAMES = {2: 'steps', 4: 'read', 6: 'search', 9: 'chain', 12: 'write'}
_METADATA = ''.join(
  'thunk_metadata {\n  thunk_info {\n    profile_annotation: '
  f'"{name}"\n    thunk_id: {number}\n  }}\n}}\n'
  for number, name in _NAMES.items()
)
_ROUNDS = gpu_compile.Rounds(one_side=5.0, both_sides=3.0)


def test_every_launch_of_a_step_is_counted_as_often_as_it_runs():
  program = program_text.Program(_PROGRAM)
  cost = gpu_launches.cost_of_step(
    gpu_launches.parse(_THUNKS, _METADATA), program, lambda loop: 3.0
  )
  assert cost.kernels == 3  # read, a copy, write
  # A known number of rounds needs no condition; else one decides each round,
  # and that there is no further one.
  assert cost.in_loops == 11 * 1 + 3 * 1 + (3 + 1) * 1
  assert cost.syncs == 3 + 1
  assert (cost.graphs, cost.in_graphs) == (1, 2)
  assert cost.plain_microseconds == 3 * (3 + 18) + 9 * 4


def test_a_gather_moves_its_rows_and_a_write_in_place_what_it_writes():
  program = program_text.Program(_PROGRAM)
  assert program.step() == 'step_body'
  assert program.moved('read') == 4 * 8 * 4 + 4 * 4 + 4 * 8 * 4
  assert program.moved('write') == 4 * 8 * 4 + 4 + 4 * 8 * 4
  rounds = 2 * 4 * 8 * 4
  outside = program.moved('read') + program.moved('write')
  condition = program.moved('less')
  assert program.moved_by_all('step_body', lambda loop: 3.0) == (
    outside + (11 + 3) * (rounds + condition)
  )


def test_padding_of_a_layout_is_counted():
  assert program_text.array_bytes('f32[20,10]{1,0:T(8,128)}') == 24 * 128 * 4
  assert program_text.array_bytes('f32[20,10]{0,1:T(8,128)}') == 128 * 16 * 4
  assert program_text.array_bytes('(bf16[3]{0}, pred[5]{0})') == 3 * 2 + 5
  # What lies beside a TPU's cores is not moved.
  assert program_text.array_bytes('f32[8,128]{1,0:T(8,128)S(1)}') == 0


def test_a_kind_of_thunk_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match='kind Surprise'):
    gpu_launches.cost_of_step(
      gpu_launches.parse(_THUNKS.replace('kCopy ', 'kSurprise '), _METADATA),
      program_text.Program(_PROGRAM),
      lambda loop: 3.0,
    )


def test_rounds_are_those_of_the_busiest_nodes():
  # User 1 has three times, its equal ones are one update; item 9 has all four.
  users = np.array([1, 1, 1, 2, 1])
  items = np.array([9, 9, 9, 9, 8])
  times = np.array([0, 5, 5, 6, 7])
  found = gpu_compile.rounds_of_log(users, items, times, block=64)
  assert found == gpu_compile.Rounds(one_side=2.0, both_sides=2.0)


# What a step may launch, wait and move at most: a little more than is stored.
_LIMITS = {
  'tgn, train': {'plain_ms': 1.25, 'syncs': 0, 'bytes': 1.65e9},
  # Tables (SPEC 5.5) take some launches more, and half of the bytes.
  'tgn, rank': {'plain_ms': 0.6, 'graph_ms': 0.43, 'syncs': 0, 'bytes': 0.45e9},
  'dynllm, train': {'plain_ms': 2.25, 'syncs': 0, 'bytes': 2.75e9},
  'dynllm, rank': {
    'plain_ms': 0.8,
    'graph_ms': 0.51,
    'syncs': 0,
    'bytes': 0.4e9,
  },
}


@pytest.mark.parametrize('name', sorted(_LIMITS))
def test_the_stored_figures_have_not_grown(name):
  stored = json.loads(gpu_compile.RESULTS.with_suffix('.json').read_text())
  system, part = name.split(', ')
  figures = stored['systems'][system][part]
  for key, limit in _LIMITS[name].items():
    assert figures[key] <= limit, f'{name}: {key}'
