"""One size of a cost curve in a process of its own, timed slice by slice.

    python -m experiments.worker '{"kind": "train", "system": "tgn", ...}'

The process writes a line about what it has built. Then, for each line that it
reads, it works on its next slice and writes the slice's events and seconds and
its own peak memory. So sizes can be timed in turn, while each has a peak
memory of its own.
"""

from collections.abc import Callable
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking
from dynllm_jax.runs import provenance
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from experiments import random_logs
from experiments import slices as slices_lib
from experiments.timed_process import TimedProcess

Spec = dict[str, Any]  # what a worker measures
Step = Callable[[], tuple[int, float]]  # works on a slice: events and seconds


class Worker:
  """A process that measures one size.

  Attributes:
    about: figures of what it has built.

  Args:
    spec: `kind` ('train' or 'rank'), `system`, `num_events`, `num_users`,
      `num_items`, `active` (random_logs.uniform), `llm_dim`, `slice_events`,
      `spread` (Slices), `batches` (of a ranking) and `fields`, other fields of
      the configuration.
  """

  def __init__(self, spec: Spec):
    self._process = TimedProcess(
      [sys.executable, '-m', 'experiments.worker', json.dumps(spec)]
    )
    self.about: dict[str, Any] = json.loads(self._process.about)

  def step(self) -> dict[str, Any]:
    """Works on the next slice: its `events` and `seconds`, and `peak_rss`."""
    return json.loads(self._process.step())

  def close(self) -> None:
    """Ends the process."""
    self._process.close()


def _train(
  spec: Spec, config: ml_collections.ConfigDict, log: EventLog
) -> tuple[dict[str, Any], Step]:
  """Builds a system; figures of it, and what trains on the next slice."""
  slices = slices_lib.Slices(
    slices_lib.build(config, log, *random_logs.texts(log, spec['llm_dim'])),
    spec['slice_events'],
    spec['spread'],
  )
  return {
    'table_bytes': _bytes((slices.inputs, slices.state)),
    'program_peak_bytes': slices.peak_bytes(),
    'compile_s': slices.compile_s,
  }, slices.step


def _rank(
  spec: Spec, config: ml_collections.ConfigDict, log: EventLog
) -> tuple[dict[str, Any], Step]:
  """The same for ranking some batches of the log from an empty memory."""
  training = slices_lib.build(
    config, log, *random_logs.texts(log, spec['llm_dim'])
  )
  inputs, state = training.inputs, training.state
  size = config.eval.batch_size
  plan = batching.plan_batches(
    log.times, 0, min(len(log.times), size * spec['batches']), size
  )
  bound = BoundSystem(training.trainer.system, state.params, inputs)
  among_all = ranking.make_ranking(config, log).replace(
    candidates=jnp.asarray(ranking.candidate_mask(log, 'all'))
  )

  def step() -> tuple[int, float]:
    began = time.perf_counter()
    _, ranks = evaluate.replay(bound, state.memory, plan, among_all)
    return len(ranks), time.perf_counter() - began

  # A replay works on a copy of the memory.
  return {'table_bytes': _bytes((inputs, state)) + _bytes(state.memory)}, step


def _bytes(tree: Any) -> int:
  """Bytes of a pytree's arrays, without its random keys."""
  return int(
    sum(
      np.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
      if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    )
  )


def main() -> None:
  """Builds what the argument says, then times a slice for each line."""
  spec = json.loads(sys.argv[1])
  config = config_lib.default(spec['system'])
  config.update_from_flattened_dict(spec['fields'])
  log = random_logs.uniform(
    spec['num_events'],
    spec['num_users'],
    spec['num_items'],
    active=spec['active'],
  )
  build = {'train': _train, 'rank': _rank}[spec['kind']]
  about, step = build(spec, config, log)
  print(json.dumps(about), flush=True)

  for _ in sys.stdin:
    events, seconds = step()
    answer = {
      'events': events,
      'seconds': seconds,
      'peak_rss': provenance.peak_memory_bytes(),
    }
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
