"""Times generation beside transformers' torch classes, on the same prompts.

    python -m experiments.generation_speed --model=smollm2 \
        --peer_python=OTHER_VENV/bin/python

Both continue the same batches greedily in turn, round after round, on the same
cores, so that other work on the machine hurts both. A round is a batch that
writes one token (prefill) and one that writes `new` tokens; the decode rate is
of the difference. transformers (the extra `peers`) has a process of its own.
No token ends an answer, so that both write as many. The share of peak is of the
weights' products, two operations a weight and token, over the best rate of a
large product, measured in the same rounds.
"""

from collections.abc import Callable
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

from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.text import flax_models
from experiments import machine_use
from experiments.timed_process import TimedProcess

_MODEL = flags.DEFINE_string('model', None, "A model's folder.", required=True)
_BATCH = flags.DEFINE_integer('batch', 16, 'Prompts of a batch.')
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens of a prompt.')
_NEW = flags.DEFINE_integer('new', 32, 'Tokens of an answer.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How many, after one to warm up.')
_PEER = flags.DEFINE_string(
  'peer_python', sys.executable, 'Python that has torch and transformers.'
)
_OUT = flags.DEFINE_string('out', '', 'Where the report goes as well.')

_SIDE = 2048  # of the matrices whose product finds the peak

# Generates once for each line that it reads: one token, then `new`.
_PEER_CODE = """
import json, os, sys, time
cores = os.sched_getaffinity(0)
import numpy as np
import torch, transformers
os.sched_setaffinity(0, cores)  # an import widens it
torch.set_num_threads(len(cores))
ids = torch.from_numpy(np.load(sys.argv[2]))
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], dtype=torch.float32).eval()
print(f'transformers {transformers.__version__}, torch {torch.__version__}',
      flush=True)
for line in sys.stdin:
  seconds = []
  for new in (1, int(sys.argv[3])):
    clock, processor = time.perf_counter(), time.process_time()
    with torch.no_grad():
      out = model.generate(
          ids, attention_mask=torch.ones_like(ids), do_sample=False,
          max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
    seconds += [time.perf_counter() - clock, time.process_time() - processor]
  np.save(sys.argv[4], out[:, ids.shape[1]:].numpy())
  print(json.dumps(seconds), flush=True)
"""


class Seconds(NamedTuple):
  """How long a round took.

  Attributes:
    one_clock, one_processor: of the batch that writes one token.
    all_clock, all_processor: of the batch that writes all.
  """

  one_clock: float
  one_processor: float
  all_clock: float
  all_processor: float


def main(argv: list[str]) -> None:
  """Runs the rounds and prints the report."""
  del argv
  cores = os.sched_getaffinity(0)
  jax.devices()  # starts JAX's threads now, on these cores
  loaded = flax_models.load('--model', _MODEL.value, 'generator')
  vocab = loaded.model.settings.vocab_size
  ids = np.random.default_rng(0).integers(
    min(100, vocab // 2), vocab, (_BATCH.value, _LENGTH.value)
  )
  run = _runner(loaded, ids.tolist())

  with tempfile.TemporaryDirectory() as folder:
    files = [os.path.join(folder, name) for name in ('ids.npy', 'out.npy')]
    np.save(files[0], ids)
    environment = {
      name: value for name, value in os.environ.items() if name != 'PYTHONPATH'
    }
    arguments = [_MODEL.value, files[0], str(_NEW.value), files[1]]
    peer = TimedProcess(
      [_PEER.value, '-c', _PEER_CODE, *arguments],
      {**environment, 'HF_HUB_OFFLINE': '1'},
    )
    os.sched_setaffinity(0, cores)  # importing transformers allows more cores

    rounds, peaks = [], []
    for number in range(_ROUNDS.value + 1):
      theirs = Seconds(*json.loads(peer.step()))
      ours, answers = run()
      peaks.append(machine_use.gemm_peak(_SIDE))
      if number:
        rounds.append((ours, theirs))
    peer.close()
    same = float(np.mean(np.asarray(answers) == np.load(files[1])))

  shares = [work / max(peaks) for work in _operations(loaded)]
  report = _report(rounds, peer.about, same, len(cores), shares)
  print(report)
  if _OUT.value:
    with open(_OUT.value, 'w', encoding='utf-8') as file:
      file.write(report)


def _runner(
  loaded: flax_models.Loaded, prompts: list[list[int]]
) -> Callable[[], tuple[Seconds, list[list[int]]]]:
  """A function that runs a round; its first call compiles."""
  generators = [
    Decoding(
      loaded.model,
      loaded.params,
      loaded.mesh,
      len(prompts),
      len(prompts[0]),
      Stops(new, (), 0),
    )
    for new in (1, _NEW.value)
  ]

  def run() -> tuple[Seconds, list[list[int]]]:
    seconds, answers = [], []
    for generate in generators:
      clock, processor = time.perf_counter(), time.process_time()
      answers = generate(prompts, [0.0] * len(prompts), [0] * len(prompts))
      seconds.append(time.perf_counter() - clock)
      seconds.append(time.process_time() - processor)
    return Seconds(*seconds), answers

  return run


def _operations(loaded: flax_models.Loaded) -> tuple[float, float]:
  """Operations with weights a token: of a prompt, of an answer.

  Each token of an answer needs the logits, of a prompt the last one alone.
  """
  sizes = jax.tree.map(lambda leaf: leaf.size, loaded.params)
  layers = sum(jax.tree.leaves(sizes['layers_0'])) * len(
    loaded.model.settings.layers
  )
  settings = loaded.model.settings
  head = settings.vocab_size * settings.hidden_size
  return 2.0 * (layers + head / _LENGTH.value), 2.0 * (layers + head)


def _report(
  rounds: list[tuple[Seconds, Seconds]],
  peer: str,
  same: float,
  cores: int,
  shares: list[float],
) -> str:
  """The page.

  Args:
    rounds: ours and the peer's.
    peer: its versions.
    same: the share of equal tokens.
    cores: how many.
    shares: of the peak, for a token a second of a prompt, and of an answer.
  """
  prefill = _BATCH.value * _LENGTH.value
  decode = _BATCH.value * (_NEW.value - 1)

  def seconds(of: Seconds) -> list[float]:
    """Of prefill and of decode, each clock and processor."""
    return [
      of.one_clock,
      of.one_processor,
      of.all_clock - of.one_clock,
      of.all_processor - of.one_processor,
    ]

  pairs = [(seconds(ours), seconds(theirs)) for ours, theirs in rounds]
  tokens = [prefill, prefill, decode, decode]
  rates = [
    [
      statistics.median(count / pair[side][k] for pair in pairs)
      for k, count in enumerate(tokens)
    ]
    for side in (0, 1)
  ]
  ratios = [
    statistics.median(pair[1][k] / pair[0][k] for pair in pairs)
    for k in range(4)
  ]
  line = lambda label, values, form: (
    f'| {label} | {" | ".join(format(value, form) for value in values)} |'
  )
  return '\n'.join(
    [
      '# Generation speed',
      '',
      f'{os.path.basename(os.path.normpath(_MODEL.value))}.',
      f'{_BATCH.value} prompts of {_LENGTH.value} tokens and {_NEW.value} '
      f'tokens of answer each, float32, {len(rounds)} rounds in turn after',
      f'one to warm up, medians; {cores} cores, jax {jax.__version__}, {peer}; '
      f'{datetime.date.today()}. Tokens a second:',
      '',
      '| | prefill, clock | prefill, processor | decode, clock | decode, '
      'processor |',
      '|---|---|---|---|---|',
      line('this package', rates[0], ',.0f'),
      line('transformers, torch', rates[1], ',.0f'),
      line('ratio, median of the rounds', ratios, '.2f'),
      '',
      f'{same:.1%} of the tokens are the same. By the clock this package has',
      f'{rates[0][0] * shares[0]:.0%} of the peak of products in prefill and '
      f'{rates[0][2] * shares[1]:.0%} in decode.',
      '',
      '```',
      'python -m experiments.generation_speed --model=DIR '
      f'--batch={_BATCH.value} \\',
      f'    --length={_LENGTH.value} --new={_NEW.value} '
      f'--rounds={_ROUNDS.value} --peer_python=OTHER_VENV/bin/python',
      '```',
      '',
    ]
  )


if __name__ == '__main__':
  app.run(main)
