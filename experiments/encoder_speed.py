"""Times the encoder `flax` beside sentence-transformers, on the same texts.

    python -m experiments.encoder_speed --model=DIR --items=items.csv \
        --peer_python=OTHER_VENV/bin/python --out=encoder_speed.md

Both encode the titles in turn, round after round, on the same cores, so that
other work on the machine hurts both. sentence-transformers (the extra `peers`)
runs in a process of its own, since it may need another version of transformers
than Flax models do. It encodes in its default way, in batches of 32.
"""

from collections.abc import Callable
import csv
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.text import flax_models
from dynllm_jax.text.encoders import flax_encoder
from experiments.timed_process import TimedProcess

_MODEL = flags.DEFINE_string(
  'model', None, "A sentence-transformers model's directory.", required=True
)
_ITEMS = flags.DEFINE_string(
  'items', None, 'CSV file with a column `title`.', required=True
)
_COUNT = flags.DEFINE_integer(
  'count', 1000, 'How many titles, the first of the file.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 5, 'How many rounds, after one to warm up.'
)
_BATCH_TOKENS = flags.DEFINE_integer(
  'batch_tokens', 0, 'facets.encoder.batch_tokens.'
)
_PEER = flags.DEFINE_string(
  'peer_python', sys.executable, 'Python that has sentence-transformers.'
)
_OUT = flags.DEFINE_string('out', '', 'Where the report goes as well.')
_FIXTURE = flags.DEFINE_string(
  'fixture', '', 'Where a few reference rows go, for tests.'
)
_FIXTURE_ROWS, _FIXTURE_EVERY = 8, 16

# Encodes once for each line that it reads, then writes the seconds of the clock
# and of the processor.
_PEER_CODE = """
import json, os, sys, time
cores = os.sched_getaffinity(0)
import numpy as np
import sentence_transformers, torch
os.sched_setaffinity(0, cores)  # an import widens it
torch.set_num_threads(len(cores))
texts = json.load(open(sys.argv[2]))
model = sentence_transformers.SentenceTransformer(sys.argv[1], device='cpu')
print(f'sentence-transformers {sentence_transformers.__version__}, '
      f'torch {torch.__version__}', flush=True)
for line in sys.stdin:
  clock, processor = time.perf_counter(), time.process_time()
  out = model.encode(texts, show_progress_bar=False)
  seconds = time.perf_counter() - clock, time.process_time() - processor
  np.save(sys.argv[3], out)
  print(json.dumps(seconds), flush=True)
"""


class Measured(NamedTuple):
  """What the rounds have shown."""

  rounds: dict[str, list[tuple[float, float]]]  # seconds: clock, processor
  ours: np.ndarray  # f32[texts, dim], the embeddings of the last round
  theirs: np.ndarray
  peer: str  # its versions


def main(argv: list[str]) -> None:
  """Runs the rounds and prints the report."""
  del argv
  cores = os.sched_getaffinity(0)
  jax.devices()  # starts JAX's threads now, on these cores
  with open(_ITEMS.value, encoding='utf-8', newline='') as file:
    texts = [row['title'] for row in csv.DictReader(file) if row['title']]
  texts = texts[: _COUNT.value]
  with tempfile.TemporaryDirectory() as folder:
    measured = _measure(texts, folder, cores)

  report = _report(len(texts), measured, len(cores))
  print(report)
  if _OUT.value:
    with open(_OUT.value, 'w', encoding='utf-8') as file:
      file.write(report)
  if _FIXTURE.value:
    with open(_FIXTURE.value, 'w', encoding='utf-8') as file:
      json.dump(
        {
          'source': measured.peer,
          'every': _FIXTURE_EVERY,
          'texts': texts[:_FIXTURE_ROWS],
          'embeddings': measured.theirs[
            :_FIXTURE_ROWS, ::_FIXTURE_EVERY
          ].tolist(),
        },
        file,
        indent=1,
      )


def _measure(texts: list[str], folder: str, cores: set[int]) -> Measured:
  """Lets both encode the texts in turn.

  Args:
    texts: the titles.
    folder: for what the two processes exchange.
    cores: that both keep to.
  """
  places = [os.path.join(folder, name) for name in ('texts.json', 'out.npy')]
  with open(places[0], 'w', encoding='utf-8') as file:
    json.dump(texts, file)
  environment = {
    name: value for name, value in os.environ.items() if name != 'PYTHONPATH'
  }
  peer = TimedProcess(
    [_PEER.value, '-c', _PEER_CODE, _MODEL.value, *places],
    {**environment, 'HF_HUB_OFFLINE': '1'},
  )
  run = _ours(texts)
  os.sched_setaffinity(0, cores)  # importing transformers allows more cores

  rounds = {'flax': [], 'peer': [], 'cold': []}
  for number in range(_ROUNDS.value + 1):
    clock, processor = time.perf_counter(), time.process_time()
    ours = run()
    seconds = time.perf_counter() - clock, time.process_time() - processor
    rounds['flax' if number else 'cold'].append(seconds)
    seconds = tuple(json.loads(peer.step()))
    if number:
      rounds['peer'].append(seconds)
  peer.close()
  return Measured(rounds, ours, np.load(places[1]), peer.about)


def _ours(texts: list[str]) -> Callable[[], np.ndarray]:
  """A function that encodes the texts; its first call compiles."""
  config = config_lib.default().facets.encoder
  config.name, config.model = 'flax', _MODEL.value
  config.batch_tokens = _BATCH_TOKENS.value
  loaded = flax_models.load('--model', config.model, 'encoder')
  run = flax_encoder.runner(config, loaded)

  def encode() -> np.ndarray:
    out = None
    for positions, vectors in run(texts):
      if out is None:
        out = np.zeros((len(texts), vectors.shape[1]), np.float32)
      out[positions] = vectors
    return out

  return encode


def _report(num_texts: int, measured: Measured, cores: int) -> str:
  """The page."""
  rounds = measured.rounds
  middle = {
    name: [statistics.median(column) for column in zip(*seconds)]
    for name, seconds in rounds.items()
  }
  ratios = [
    [theirs / ours for ours, theirs in zip(*pair)]
    for pair in zip(rounds['flax'], rounds['peer'])
  ]
  ratio = [statistics.median(column) for column in zip(*ratios)]
  difference = np.abs(measured.ours - measured.theirs).max()
  clock, processor = rounds['cold'][0]

  def line(label: str, name: str) -> str:
    rates = [f'{num_texts / seconds:,.0f}' for seconds in middle[name]]
    return f'| {label} | {" | ".join(rates)} |'

  return '\n'.join(
    [
      '# Encoder speed',
      '',
      f'{num_texts:,} titles, {_ROUNDS.value} rounds in turn after one to warm '
      'up, medians;',
      f'{cores} cores, jax {jax.__version__}, {measured.peer}; '
      f'{datetime.date.today()}.',
      '',
      '| | texts/s, clock | texts/s, processor time |',
      '|---|---|---|',
      line('flax', 'flax'),
      line('sentence-transformers', 'peer'),
      f'| ratio, median of the rounds | {ratio[0]:.2f} | {ratio[1]:.2f} |',
      '',
      'Each length of text is compiled once: the round to warm up took '
      f'{clock:.1f} s',
      f'({processor:.1f} s of processor time). The largest difference between '
      "the two systems'",
      f'embeddings, in float32, is {difference:.1e}.',
      '',
    ]
  )


if __name__ == '__main__':
  app.run(main)
