r"""Speed beside the peers, each aim a ratio measured in one run.

    pip install -e '.[peers]'        # here, or in an environment of its own
    python -m experiments.throughput --peer_python=OTHER_VENV/bin/python

Prints `aim=<name> value=<figure> wanted=<figure> met=<yes|no|not run>` for
each aim and writes `experiments/results/throughput.json` and `.md`. Both
systems train on the same slices of one simulated log of Tmall's size, in turn,
on the same cores, so that other work on the machine hurts both; the first
slice of each compiles or warms up and is not counted. Figures are medians.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from configs import tmall
from dynllm_jax import batching
from dynllm_jax import evaluate
from dynllm_jax import pipeline
from dynllm_jax import reporting
from dynllm_jax import train
from dynllm_jax.types import InputError
from experiments import pages

_PEER = flags.DEFINE_string(
    'peer_python', sys.executable, 'Python that has torch_geometric.')
_SLICES = flags.DEFINE_integer(
    'slices', 5, 'Slices that are counted, after one to warm up.')
_EVENTS = flags.DEFINE_integer('slice_events', 16_384, 'Events of a slice.')
_SIZE = flags.DEFINE_enum(
    'size', 'tmall', ['tmall', 'demo'], 'Of the simulated log.')
_AIMS = flags.DEFINE_list('aims', [], 'Beginnings of names; default: all.')
_OUT = flags.DEFINE_string(
    'out', str(pathlib.Path(__file__).parent / 'results' / 'throughput'),
    'Where .json and .md go.')

# The authors' DynLLM (PyTorch, B 2048, L 2, n 3) on another machine with two
# cores and AVX-512: a figure to aim at, not one of this run.
_AUTHORS_TRAIN, _AUTHORS_RANK_MS = 2_172, 3_160

# Trains on the next slice for each line that it reads; answers with seconds.
# argv: npz of the log, batch size, neighbors, width, events of a slice.
_PEER_CODE = '''
import os, sys, time
import numpy as np
import torch, torch_geometric
from torch import nn
from torch_geometric.nn import TGNMemory, TransformerConv
from torch_geometric.nn.models import tgn
cores = os.sched_getaffinity(0)
torch.set_num_threads(len(cores))
log = np.load(sys.argv[1])
batch, near, dim, slice_events = map(int, sys.argv[2:])
first_item = int(log['users'].max()) + 1
users = torch.from_numpy(log['users'].astype(np.int64))
items = torch.from_numpy(log['items'].astype(np.int64)) + first_item
times = torch.from_numpy(log['times'].astype(np.int64))
message = torch.zeros(len(users), 1)
nodes = int(items.max()) + 1
memory = TGNMemory(nodes, 1, dim, dim, tgn.IdentityMessage(1, dim, dim),
                   tgn.LastAggregator())
attention = TransformerConv(
    dim, dim // 2, heads=2, dropout=0.1, edge_dim=dim + 1)
score = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
loader = tgn.LastNeighborLoader(nodes, size=near)
place = torch.empty(nodes, dtype=torch.long)
optimizer = torch.optim.Adam(
    {p for part in (memory, attention, score) for p in part.parameters()},
    lr=1e-3)
loss_of = nn.BCEWithLogitsLoss()
print(f'torch_geometric {torch_geometric.__version__}, '
      f'torch {torch.__version__}', flush=True)

def step(low, high):
  optimizer.zero_grad()
  u, i, t, m = (x[low:high] for x in (users, items, times, message))
  other = torch.randint(first_item, nodes, (len(u),))
  known, edges, ids = loader(torch.cat([u, i, other]).unique())
  place[known] = torch.arange(len(known))
  state, last = memory(known)
  gap = (last[edges[0]] - times[ids]).to(state.dtype)
  features = torch.cat([memory.time_enc(gap), message[ids]], -1)
  rows = attention(state, edges, features)
  rate = lambda nodes: score(
      torch.cat([rows[place[u]], rows[place[nodes]]], -1))
  right, wrong = rate(i), rate(other)
  loss = loss_of(right, torch.ones_like(right)) + loss_of(
      wrong, torch.zeros_like(wrong))
  memory.update_state(u, i, t, m)
  loader.insert(u, i)
  loss.backward()
  optimizer.step()
  memory.detach()

at = 0
for line in sys.stdin:
  stop = at + slice_events
  began = time.perf_counter()
  for low in range(at, stop, batch):
    step(low, min(low + batch, stop))
  print(time.perf_counter() - began, flush=True)
  at = stop
'''

_START_CODE = '''
from configs import tmall
from dynllm_jax import batching, pipeline, train
config = tmall.get_config()
config.data.size = '{size}'
run = pipeline.prepare(config)
state = train.start_epoch(run.trainer, pipeline.initial_state(run))
plan = run.train_plan
count = -(-len(plan.start) // config.train.chunk)
chunk = batching.chunks(plan, -(-len(plan.start) // count))[0]
rows = (chunk.start, chunk.size, chunk.part, chunk.ready)
train.train_chunk.lower(
    run.trainer, plan.batch_size, run.inputs, state, rows, None).compile()
'''


class Ours:
  """A system of ours, trained slice by slice.

  Args:
    system: its name.
    fields: of the configuration that differ from configs/tmall.py.
    slice_events: of a slice, about.
  """

  def __init__(self, system: str, fields: dict, slice_events: int):
    config = tmall.get_config(system)
    config.data.size = _SIZE.value
    config.eval.compare = ()
    config.update_from_flattened_dict(fields)
    self.run = pipeline.prepare(config)
    plan = self.run.train_plan
    self.state = train.start_epoch(
        self.run.trainer, pipeline.initial_state(self.run))
    length = max(1, slice_events // plan.batch_size)
    self._chunks = iter(batching.chunks(plan, length))
    self._batch_size = plan.batch_size

  def step(self) -> float:
    """Trains on the next slice; its events by second."""
    chunk = next(self._chunks)
    rows = (chunk.start, chunk.size, chunk.part, chunk.ready)
    began = time.perf_counter()
    self.state, (_, sizes) = jax.block_until_ready(train.train_chunk(
        self.run.trainer, self._batch_size, self.run.inputs, self.state, rows,
        None))
    return int(np.sum(sizes)) / (time.perf_counter() - began)


def beside_peer(batch: int, near: int) -> dict:
  """TGN of ours and torch_geometric's, slice after slice."""
  events = max(batch, _EVENTS.value // batch * batch)
  ours = Ours('tgn', {
      'train.batch_size': batch, 'model.num_neighbors': near}, events)
  log = ours.run.log
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'log.npz')
    np.savez(path, users=log.users, items=log.items, times=log.times)
    peer = subprocess.Popen(
        [_PEER.value, '-c', _PEER_CODE, path, str(batch), str(near),
         str(ours.run.config.model.dim), str(events)],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    name = peer.stdout.readline().strip()
    if not name:
      raise InputError(
          f'--peer_python: {_PEER.value} has no torch_geometric; allowed: a '
          "Python with the extra 'peers'")
    pairs = []
    for number in range(_SLICES.value + 1):
      mine = ours.step()
      peer.stdin.write('go\n')
      peer.stdin.flush()
      theirs = events / float(peer.stdout.readline())
      if number:
        pairs.append((mine, theirs))
    peer.stdin.close()
    peer.wait()
  rates = [statistics.median(column) for column in zip(*pairs)]
  return {'value': statistics.median(a / b for a, b in pairs),
          'ours_events_per_s': rates[0], 'peer_events_per_s': rates[1],
          'peer': name}


def dynllm_training(llm_dim: int) -> dict:
  """DynLLM in the paper's setting; texts of a width."""
  ours = Ours('dynllm', {'facets.encoder.dim': llm_dim}, _EVENTS.value)
  rates = [ours.step() for _ in range(_SLICES.value + 1)][1:]
  return {'value': statistics.median(rates) / _AUTHORS_TRAIN,
          'ours_events_per_s': statistics.median(rates),
          'peer': f'the authors\' code on another machine, {_AUTHORS_TRAIN:,}'}


def dynllm_ranking() -> dict:
  """Ranking of the whole catalogue, beside the authors'."""
  ours = Ours('dynllm', {}, _EVENTS.value)
  run = ours.run
  plan = evaluate.split_plans(
      run.system, run.log, run.config.eval.batch_size)['validation']
  candidates = jnp.asarray(evaluate.candidate_mask(run.log, 'all'))
  ranking = evaluate.ranking_of(run.config, run.log)
  memory = evaluate.after_pending(
      run.system, ours.state.params, ours.state.memory, run.inputs,
      ours.state.pending)
  seconds = []
  for _ in range(_SLICES.value + 1):
    began = time.perf_counter()
    _, ranks = evaluate.replay(
        run.system, ours.state.params, memory, run.inputs, plan, ranking,
        candidates)
    seconds.append(time.perf_counter() - began)
  per_thousand = 1e6 * statistics.median(seconds[1:]) / len(ranks)
  return {'value': _AUTHORS_RANK_MS / per_thousand,
          'ours_ms_per_1000_events': per_thousand,
          'peer': f'the authors\' code on another machine, {_AUTHORS_RANK_MS:,}'}


def start_up() -> dict:
  """Seconds of the second run of configs/tmall.py up to its first step."""
  code = _START_CODE.format(size=_SIZE.value)
  times = []
  for _ in range(2):  # the first fills the caches
    began = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True,
                   stdout=subprocess.DEVNULL)
    times.append(time.perf_counter() - began)
  return {'value': times[-1], 'first_run_s': times[0]}


# Name: what is wanted (of `start_up_s` at most, else at least), how to measure.
AIMS = {
    'tgn_b2048_n10': (3.0, lambda: beside_peer(2048, 10)),
    'tgn_b200_n10': (4.0, lambda: beside_peer(200, 10)),
    'tgn_b200_n50': (8.0, lambda: beside_peer(200, 50)),
    'dynllm_384': (5.0, lambda: dynllm_training(384)),
    'dynllm_1536': (5.0, lambda: dynllm_training(1536)),
    'dynllm_ranking': (60.0, dynllm_ranking),
    'start_up_s': (10.0, start_up),
}


def main(argv: list[str]) -> int:
  """Measures the aims that were asked for and writes the page."""
  del argv
  results = {}
  try:
    for name, (wanted, measure) in AIMS.items():
      asked = not _AIMS.value or any(map(name.startswith, _AIMS.value))
      found = {'wanted': wanted, 'met': 'not run'}
      if asked:
        found |= measure()
        met = (found['value'] <= wanted if name == 'start_up_s'
               else found['value'] >= wanted)
        found['met'] = 'yes' if met else 'no'
        jax.clear_caches()
      results[name] = found
      value = f'{found["value"]:.2f}' if asked else '-'
      reporting.say(
          f'aim={name} value={value} wanted={wanted:g} met={found["met"]}')
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  write(results)
  return 0


def write(results: dict) -> None:
  """Writes the .json and the page."""
  about = {'commit': reporting.commit(), 'machine': reporting.machine(),
           'log': f'simulated log {_SIZE.value}', 'slices': _SLICES.value,
           'slice_events': _EVENTS.value}
  lines = [
      '# Throughput', '',
      f'Simulated log {_SIZE.value}; medians of {_SLICES.value} slices of '
      f'{_EVENTS.value:,} events. Commit {about["commit"]}. Machine: '
      f'{about["machine"]}.', '',
      *pages.table(
          ['aim', 'value', 'wanted', 'met', 'figures'],
          [[name, f'{r["value"]:.2f}' if 'value' in r else '-',
            f'{r["wanted"]:g}', r['met'], ', '.join(
                f'{k} {v:,.0f}' if isinstance(v, float) else f'{k}: {v}'
                for k, v in r.items() if k not in ('value', 'wanted', 'met'))]
           for name, r in results.items()]), '']
  reporting.write_atomically(
      pathlib.Path(_OUT.value + '.json'),
      json.dumps({**about, 'aims': results}, indent=2) + '\n')
  reporting.write_atomically(
      pathlib.Path(_OUT.value + '.md'), '\n'.join(lines))


if __name__ == '__main__':
  app.run(main)
