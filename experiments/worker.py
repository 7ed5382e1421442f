"""A size of a cost curve in a process of its own, timed a slice at a time.

    python -m experiments.worker '{"kind": "train", "system": "tgn", ...}'

Says what it has built, then answers each line that it reads with events and
seconds of its next slice and the process's peak memory. So sizes can be timed
in turn, while each has a peak memory of its own.
"""

import json
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.runs import provenance
from experiments import random_logs
from experiments import slices as slices_lib


class Worker:
  """A process that measures one size.

  Args:
    spec: `kind` ('train' or 'rank'), `system`, `num_events`, `num_users`,
      `num_items`, `active` (random_logs.uniform), `llm_dim`, `slice_events`,
      `spread` (Slices), `batches` (of a ranking) and `fields`, other fields of
      the configuration.
  """

  def __init__(self, spec: dict[str, Any]):
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.worker', json.dumps(spec)],
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self.about = self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'a worker ended with status {self._process.wait()}; its error is above'
      )
    return json.loads(line)

  def step(self) -> dict[str, Any]:
    """The next slice: `events`, `seconds`, `peak_rss`."""
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def _train(spec, config, log):
  """What is built, and a function that trains on the next slice."""
  slices = slices_lib.Slices(
    *slices_lib.build(config, log, *random_logs.texts(log, spec['llm_dim'])),
    spec['slice_events'],
    spec['spread'],
  )
  return {
    'table_bytes': _bytes((slices.inputs, slices.state)),
    'program_peak_bytes': slices.peak_bytes(),
    'compile_s': slices.compile_s,
  }, slices.step


def _rank(spec, config, log):
  """The same of ranking some batches of the log from an empty memory."""
  trainer, inputs, _, state = slices_lib.build(
    config, log, *random_logs.texts(log, spec['llm_dim'])
  )
  size = config.eval.batch_size
  plan = batching.plan_batches(
    log.times, 0, min(len(log.times), size * spec['batches']), size
  )
  candidates = jnp.asarray(evaluate.candidate_mask(log, 'all'))
  ranking = evaluate.ranking_of(config, log)

  def step():
    began = time.perf_counter()
    _, ranks = evaluate.replay(
      trainer.system,
      state.params,
      state.memory,
      inputs,
      plan,
      ranking,
      candidates,
    )
    return len(ranks), time.perf_counter() - began

  # A replay works on a copy of the memory.
  return {'table_bytes': _bytes((inputs, state)) + _bytes(state.memory)}, step


def _bytes(tree):
  return int(
    sum(
      np.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
      if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    )
  )


def main() -> None:
  """Builds what the argument says and times a slice a line."""
  spec = json.loads(sys.argv[1])
  config = config_lib.default(spec['system'])
  config.update_from_flattened_dict(spec['fields'])
  log = random_logs.uniform(
    spec['num_events'],
    spec['num_users'],
    spec['num_items'],
    active=spec['active'],
  )
  about, step = {'train': _train, 'rank': _rank}[spec['kind']](
    spec, config, log
  )
  print(json.dumps(about), flush=True)
  for _ in sys.stdin:
    events, seconds = step()
    print(
      json.dumps(
        {
          'events': events,
          'seconds': seconds,
          'peak_rss': provenance.peak_memory_bytes(),
        }
      ),
      flush=True,
    )


if __name__ == '__main__':
  main()
