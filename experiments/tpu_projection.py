"""A training step on 256 TPU chips, projected from what can be counted.

Nothing of it was measured on a TPU. A compiled program tells arithmetic, bytes
and collectives; how long the chains of the ordered update are, and how uneven
the questions about rows, only a log tells (update_load.py). What is counted:

- compute: operations of the compiled step, at a quarter of the vendor's
  bfloat16 rate, since a float32 product takes several passes;
- memory: bytes between a chip and its memory, read off the compiled text
  (program_text.py), a gather with the rows that it takes;
- update: iterations of the loops on the busiest chip, forward and backward. One
  is a product of a few rows, bound by its latency: 5 to 10 microseconds;
- links: bytes of all collectives over one link, those of a round of questions
  as often as there are rounds, and ten microseconds for each collective;
- host: texts of the facets that a step may read, to every group of chips that
  holds the tables, shared among the hosts.

`together` is the sum with the slower update, as if nothing overlapped.
"""

from typing import Any

from experiments.update_load import Load

# Of a v5e chip and its host, as published by the vendor.
FLOPS_PER_S = 197e12 / 4
MEMORY_BYTES_PER_S = 819e9
LINK_BYTES_PER_S = 45e9  # a direction of one of four links of 1,600 Gbit/s
CHIPS_OF_A_HOST = 4
HOST_BYTES_PER_S = 8e9  # assumed, to all chips of a host together

ITERATION_SECONDS = (5e-6, 10e-6)  # assumed
COLLECTIVE_SECONDS = 10e-6  # assumed, of 256 chips


def seconds(load: Load, case: dict[str, Any]) -> dict[str, float]:
  """The seconds of a step on the busiest chip, by what takes them.

  Args:
    load: of the update.
    case: of experiments/tpu_compile.py; its training program.

  Returns:
    By name, `together` last.
  """
  facts = case['train']
  collectives = facts['collectives']
  again = collectives.get('all-to-all', {'bytes': 0, 'count': 0})
  more = load.rounds - 1
  data, nodes = (int(x) for x in case['mesh'].split(' x '))
  hosts = data * nodes / CHIPS_OF_A_HOST
  texts = case['batch_size'] * 4 * case['size']['llm_dim'] * 2

  count = sum(kind['count'] for kind in collectives.values())
  count += more * again['count']
  found = {
    'compute': facts['flops'] / FLOPS_PER_S,
    'memory': facts['bytes_a_step'] / MEMORY_BYTES_PER_S,
    'update': load.shared * ITERATION_SECONDS[1],
    'links': (facts['collective_bytes'] + more * again['bytes'])
    / LINK_BYTES_PER_S
    + count * COLLECTIVE_SECONDS,
    'host': texts * data / hosts / HOST_BYTES_PER_S,
  }
  return {**found, 'together': sum(found.values())}


def page(tpu: dict[str, dict[str, Any]], load: Load | None) -> list[str]:
  """The part of the results page on 256 chips; nothing without the programs.

  Args:
    tpu: results of experiments/tpu_compile.py by name.
    load: of the update; None where it was not counted.
  """
  case = tpu.get('v5e_16x16_huge')
  if case is None or load is None:
    return []
  return [*_update(case, load), *_projection(case, load)]


def _update(case: dict[str, Any], load: Load) -> list[str]:
  """What only a log tells."""
  return [
    '',
    '## The ordered update, 256 chips',
    '',
    "Chains are those of a simulated log of Tmall's size, cut into batches of "
    f'{case["batch_size"]:,} events, on a mesh of {case["mesh"]}: the longest '
    f'has {load.longest:,.0f} updates, the busiest chip makes '
    f'{load.shared:,.0f} iterations a step, forward and backward, for '
    f'{load.events:,.0f} events of a side; one device that applied all events '
    f'would make {load.alone:,.0f}. Questions about items need '
    f'{load.rounds:.1f} rounds, since items that came at one time lie in one '
    'block. Means over batches. A log of 100 million users has shorter chains, '
    'so this is the harder case.',
  ]


def _projection(case: dict[str, Any], load: Load) -> list[str]:
  """Seconds of a step; a line where the program was compiled too long ago."""
  if 'bytes_a_step' not in case['train']:
    return ['', 'The program above is older than what the projection reads.']
  found, events = seconds(load, case), case['batch_size']
  faster = found['together'] - load.shared * (
    ITERATION_SECONDS[1] - ITERATION_SECONDS[0]
  )
  return [
    '',
    '## Projection, 256 chips',
    '',
    f'A step of `dynllm`, {events:,} events, at {case["size"]["users"]:,} '
    f'users, {case["size"]["items"]:,} items and {case["size"]["events"]:,} '
    'events, on the busiest chip: '
    + ', '.join(f'{name} {1e3 * value:.2f} ms' for name, value in found.items())
    + f'. That is {events / found["together"] / 1e6:.1f} to '
    f'{events / faster / 1e6:.1f} million events a second, at 10 and at 5 '
    'microseconds an iteration of the update.',
    '',
    'Assumed: a quarter of 197 TFLOP/s; 819 GB/s of memory, a gather with the '
    'rows that it takes; 45 GB/s of one link and 10 microseconds for every '
    'collective; '
    f'{HOST_BYTES_PER_S / 1e9:g} GB/s from a host to its {CHIPS_OF_A_HOST} '
    'chips, for the texts of the facets; nothing overlapped. Nothing was '
    'measured on a TPU.',
  ]
