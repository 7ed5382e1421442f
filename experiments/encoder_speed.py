"""The encoder `flax` beside sentence-transformers: same texts, one run.

    python -m experiments.encoder_speed --model=DIR --items=items.csv \
        --peer_python=OTHER_VENV/bin/python --out=encoder_speed.md

Both encode the same titles in turn, round after round, on the same cores, so
that other work on the machine hurts both. sentence-transformers runs in a
process of its own, as it may need another transformers than Flax models do;
it is the extra `peers`. It encodes in its own default way, batches of 32.
"""

import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.text import flax_models
from dynllm_jax.text.encoders import flax_encoder

_MODEL = flags.DEFINE_string(
  'model', None, "A sentence-transformers model's directory.", required=True
)
_ITEMS = flags.DEFINE_string(
  'items', None, 'CSV file with a column `title`.', required=True
)
_COUNT = flags.DEFINE_integer('count', 1000, 'Titles, the first of the file.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds, after one to warm up.')
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

# Encodes once for each line that it reads; answers with seconds of the clock
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


def main(argv):
  """Runs the rounds and prints the report."""
  del argv
  cores = os.sched_getaffinity(0)
  jax.devices()  # whose threads keep to the cores of now
  with open(_ITEMS.value, encoding='utf-8', newline='') as file:
    texts = [row['title'] for row in csv.DictReader(file) if row['title']]
  texts = texts[: _COUNT.value]
  with tempfile.TemporaryDirectory() as folder:
    rounds, ours, theirs, peer_name = _measure(texts, folder, cores)
  report = _report(
    texts, rounds, np.abs(ours - theirs).max(), peer_name, len(cores)
  )
  print(report)
  if _OUT.value:
    with open(_OUT.value, 'w', encoding='utf-8') as file:
      file.write(report)
  if _FIXTURE.value:
    with open(_FIXTURE.value, 'w', encoding='utf-8') as file:
      json.dump(
        {
          'source': peer_name,
          'every': _FIXTURE_EVERY,
          'texts': texts[:_FIXTURE_ROWS],
          'embeddings': theirs[:_FIXTURE_ROWS, ::_FIXTURE_EVERY].tolist(),
        },
        file,
        indent=1,
      )


def _measure(texts, folder, cores):
  """Seconds by system and round, the last embeddings of both, the peer."""
  places = [os.path.join(folder, name) for name in ('texts.json', 'out.npy')]
  with open(places[0], 'w', encoding='utf-8') as file:
    json.dump(texts, file)
  environment = {
    name: value for name, value in os.environ.items() if name != 'PYTHONPATH'
  }
  peer = subprocess.Popen(
    [_PEER.value, '-c', _PEER_CODE, _MODEL.value, *places],
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**environment, 'HF_HUB_OFFLINE': '1'},
  )
  peer_name = peer.stdout.readline().strip()
  run = _ours(texts)
  os.sched_setaffinity(0, cores)  # transformers' import widens it
  rounds = {'flax': [], 'peer': [], 'cold': []}
  for number in range(_ROUNDS.value + 1):
    clock, processor = time.perf_counter(), time.process_time()
    ours = run()
    seconds = time.perf_counter() - clock, time.process_time() - processor
    rounds['flax' if number else 'cold'].append(seconds)
    peer.stdin.write('go\n')
    peer.stdin.flush()
    seconds = json.loads(peer.stdout.readline())
    if number:
      rounds['peer'].append(seconds)
  peer.stdin.close()
  peer.wait()
  return rounds, ours, np.load(places[1]), peer_name


def _ours(texts):
  """A function that encodes the texts; its first call compiles."""
  config = config_lib.default().facets.encoder
  config.name, config.model = 'flax', _MODEL.value
  config.batch_tokens = _BATCH_TOKENS.value
  loaded = flax_models.load('--model', config.model, 'encoder')
  run = flax_encoder.runner(config, loaded)

  def encode():
    out = None
    for positions, vectors in run(texts):
      if out is None:
        out = np.zeros((len(texts), vectors.shape[1]), np.float32)
      out[positions] = vectors
    return out

  return encode


def _report(texts, rounds, difference, peer_name, cores):
  middle = {
    name: [statistics.median(column) for column in zip(*seconds)]
    for name, seconds in rounds.items()
  }
  ratios = [
    [theirs / ours for ours, theirs in zip(*pair)]
    for pair in zip(rounds['flax'], rounds['peer'])
  ]
  ratio = [statistics.median(column) for column in zip(*ratios)]
  rate = lambda name, kind: f'{len(texts) / middle[name][kind]:,.0f}'
  return f"""# Encoder speed

{len(texts):,} titles, {_ROUNDS.value} rounds in turn after one to warm up, medians;
{cores} cores, jax {jax.__version__}, {peer_name}; {datetime.date.today()}.

| | texts/s, clock | texts/s, processor time |
|---|---|---|
| flax | {rate('flax', 0)} | {rate('flax', 1)} |
| sentence-transformers | {rate('peer', 0)} | {rate('peer', 1)} |
| ratio, median of the rounds | {ratio[0]:.2f} | {ratio[1]:.2f} |

Compiling comes once for each length: the round to warm up took {rounds['cold'][0][0]:.1f} s
({rounds['cold'][0][1]:.1f} s of processor time). Largest difference between the two systems'
embeddings, in float32: {difference:.1e}.
"""


if __name__ == '__main__':
  app.run(main)
