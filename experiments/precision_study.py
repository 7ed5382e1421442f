r"""What the precision of products, and of what is kept, does to recall.

    python -m experiments.precision_study --config=amazon_beauty \
        --events=LOG/interactions.csv --items=LOG/items.csv

A system trains with products of float32, tf32 and bf16 (`train.precision`), and
with memories kept as float16 (`model.memory_dtype`), from several seeds each:
how far these lie apart says how far two runs do in any case. Each setting is
compared with float32 by a paired test of test Recall@10.

XLA's CPU backend multiplies in float32 whatever it is told, so here the factors
of every product of a step are rounded first, forward and backward, to the
nearest number of as many bits, as tensor cores and a TPU's matrix unit do; sums
are float32 there, too. A program has the form that is written for accelerators,
whose products are matrix products. It rounds no less than a device: XLA may
compute a small product there without the matrix unit, in float32. A run is
ranked in float32, and once more with products rounded as in training, which is
what an accelerator does where JAX's default is left.

Adds to `experiments/results/precision.json` and writes `.md`.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib
import json
import pathlib
from typing import Any
from typing import NamedTuple
from unittest import mock

from absl import app
from absl import flags
import jax
from jax.interpreters import mlir
import jax.numpy as jnp
import numpy as np

from dynllm_jax import progress
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import significance
from dynllm_jax.kernels import platforms
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.runs import verdict
from dynllm_jax.storage import atomic
from experiments import pages

RESULTS = pathlib.Path(__file__).parent / 'results' / 'precision'
COMPILED = RESULTS.with_name('gpu_compile.json')

MANTISSA_BITS = {'tf32': 10, 'bf16': 7}
# The fields that a setting changes.
SETTINGS = {
  'float32': {'train.precision': 'float32'},
  'tf32': {'train.precision': 'tf32'},
  'bf16': {'train.precision': 'bf16'},
  'float16 memory': {'model.memory_dtype': 'float16'},
}
_EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@contextlib.contextmanager
def rounded(mantissa_bits: int) -> Iterator[list[int]]:
  """Products of float32 that are lowered meanwhile round their factors.

  Those that ask for the highest precision do not.

  Args:
    mantissa_bits: that a factor keeps.

  Yields:
    A list with how many were lowered so.
  """
  # JAX looks a rule up whenever it lowers a product.
  plain = mlir._platform_specific_lowerings['cpu'][  # type: ignore
    jax.lax.dot_general_p
  ].rule
  count = [0]

  def product(left: Any, right: Any, **how: Any) -> Any:
    factors = (
      jax.lax.reduce_precision(x, 8, mantissa_bits) for x in (left, right)
    )
    return jax.lax.dot_general_p.bind(*factors, **{**how, 'precision': _EXACT})

  def rule(context: Any, left: Any, right: Any, **how: Any) -> Any:
    floats = all(x.dtype == jnp.float32 for x in context.avals_in)
    if how['precision'] == _EXACT or not floats:
      return plain(context, left, right, **how)
    count[0] += 1
    return mlir.lower_fun(product, multiple_results=False)(
      context, left, right, **how
    )

  # What was compiled before, or is meanwhile, is no other's.
  jax.clear_caches()
  mlir.register_lowering(jax.lax.dot_general_p, rule, platform='cpu')
  try:
    yield count
  finally:
    mlir.register_lowering(jax.lax.dot_general_p, plain, platform='cpu')
    jax.clear_caches()


class Measured(NamedTuple):
  """A run.

  Attributes:
    about: `seed`, `loss` of the last epoch, `memory_mb` of the tables of
      states, and Recall@10 of `validation`, `test` and `test_rounded`, the last
      ranked with the products of training, None where these are float32.
    users: i32[events] of the ranked events of test.
    gains: f64[events], what each of them contributes to `test`.
    gains_rounded: the same of `test_rounded`.
  """

  about: dict[str, Any]
  users: np.ndarray
  gains: np.ndarray
  gains_rounded: np.ndarray | None


def measure(setting: str, seed: int) -> Measured:
  """Trains with a setting and ranks."""
  config = importlib.import_module(f'configs.{_CONFIG.value}').get_config(
    _SYSTEM.value
  )
  config.data.source = 'event_log'
  config.data.events, config.data['items'] = _EVENTS.value, _ITEMS.value
  config.data.dir, config.eval.compare = _DATA.value, ()
  config.seed = seed
  config.model.memory_dtype = SETTINGS[setting].get(
    'model.memory_dtype', 'float32'
  )
  bits = MANTISSA_BITS.get(setting)
  products = rounded(bits) if bits else contextlib.nullcontext()

  run = prepared.prepare(config)
  with products as in_training:
    state = prepared.initial_state(run)
    for _ in range(_EPOCHS.value):
      state, record = prepared.train_one_epoch(run, state)
  splits = ('validation', 'test')
  ranked = prepared.rank_splits(run, state, splits, _SAMPLE.value)
  gains = {
    split: significance.gains(ranks, 'recall@10')
    for split, (ranks, _) in ranked.items()
  }
  gains_rounded = None
  if bits:
    with rounded(bits) as in_ranking:
      ranked = prepared.rank_splits(run, state, splits, _SAMPLE.value)
    gains_rounded = significance.gains(ranked['test'][0], 'recall@10')
    # Else a program of before has run.
    if not (in_training[0] and in_ranking[0]):
      raise RuntimeError(f'{setting}: no product was rounded')

  about = {
    'seed': seed,
    'loss': record['loss'],
    'memory_mb': sum(
      side.state.nbytes
      for side in (state.memory.user, state.memory.item)
      if side
    )
    / 1e6,
    'validation': float(np.mean(gains['validation'])),
    'test': float(np.mean(gains['test'])),
    'test_rounded': bits and float(np.mean(gains_rounded)),
  }
  users = _ranked_users(run)
  return Measured(about, users, gains['test'], gains_rounded)


def _ranked_users(run: prepared.PreparedRun) -> np.ndarray:
  """i32[events], of the sample of test."""
  plan = run.rank_plans['test']
  chosen = evaluate.sample_batches(plan, _SAMPLE.value)
  batches = zip(plan.batches.start[chosen], plan.batches.size[chosen])
  return np.concatenate([run.log.users[a : a + size] for a, size in batches])


def against(
  found: Sequence[Measured], first: Sequence[Measured]
) -> dict[str, Any]:
  """A setting's figures, with its test Recall@10 beside float32's.

  Args:
    found: of the setting, a run a seed.
    first: of float32, from the same seeds.

  Returns:
    `runs`, what is known of each; `ranked_in_float32` and `ranked_rounded`:
    `difference` from float32, its 95 % `interval` and `p`, of gains that are
    means over seeds; None where nothing was ranked so.
  """

  def pair(gains: Sequence[np.ndarray | None]) -> dict[str, Any] | None:
    if gains[0] is None:
      return None
    apart = np.mean(gains, axis=0) - np.mean([x.gains for x in first], axis=0)
    [means] = significance.resampled_means([apart], found[0].users)
    return {
      'difference': float(np.mean(apart)),
      'interval': list(significance.middle(means)),
      'p': significance.p_of(means),
    }

  return {
    'runs': [x.about for x in found],
    'ranked_in_float32': pair([x.gains for x in found]),
    'ranked_rounded': pair([x.gains_rounded for x in found]),
  }


def page(results: dict[str, Any]) -> list[str]:
  """The page of `results`, its lines."""
  lines = [
    '# Precision and recall',
    '',
    'Test Recall@10 by the precision of the products of a training step, or of '
    'what is kept, emulated on a CPU (experiments/precision_study.py): means '
    'over seeds and, where there are several, the standard deviation. In '
    'brackets the difference from float32, its 95 % interval and p, paired by '
    'event, resampled by user: they do not know that another seed gives '
    'another result, so read them beside the deviation. Memory: the tables of '
    "states. GB a step: TGN's, of a program compiled for an H100 "
    '(gpu_compile.md).',
    '',
  ]
  compiled = json.loads(COMPILED.read_text())['systems']
  for about in results.values():
    rows = [
      [
        setting,
        str(len(of_one['runs'])),
        _mean(of_one['runs'], 'validation'),
        _shown(of_one, 'test', 'ranked_in_float32', setting),
        _shown(of_one, 'test_rounded', 'ranked_rounded', setting),
        f'{of_one["runs"][0]["memory_mb"]:.1f} MB',
        _bytes(setting, compiled),
      ]
      for setting, of_one in about['settings'].items()
    ]
    lines += [
      f'## {about["system"]} on {about["log"]}',
      '',
      f'Epochs: {about["epochs"]}; ranked events: {about["events"]:,} of test '
      'in whole batches drawn at random, about as many of validation; commit '
      f'{about["commit"]}.',
      '',
      *pages.table(
        [
          'setting',
          'seeds',
          'validation',
          'test, ranked in float32',
          'test, ranked with the same products',
          'memory',
          'GB a step',
        ],
        rows,
      ),
      '',
    ]
  return lines[:-1]


def _mean(runs: list[dict[str, Any]], name: str) -> str:
  """Mean over seeds, and the deviation where there are several."""
  values = [run[name] for run in runs]
  spread = f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else ''
  return f'{np.mean(values):.4f}{spread}'


def _shown(of_one: dict[str, Any], name: str, pair: str, setting: str) -> str:
  """Recall@10, and the difference from float32 unless it is that."""
  apart = of_one[pair]
  if apart is None:
    return '-'
  mean = _mean(of_one['runs'], name)
  if setting == 'float32':
    return mean
  low, high = apart['interval']
  return (
    f'{mean} ({apart["difference"]:+.4f}, {low:+.4f} to {high:+.4f}, '
    f'{verdict.shown_p(apart["p"])})'
  )


def _bytes(setting: str, compiled: dict[str, Any]) -> str:
  """Gigabytes that a step of TGN moves on an H100, where it was compiled."""
  [(field, value)] = SETTINGS[setting].items()
  # What JAX does on a GPU where it is told nothing.
  case = 'tgn' if value == 'tf32' else f'tgn:{field}={value}'
  if case not in compiled:
    return '-'
  return f'{compiled[case]["train"]["bytes"] / 1e9:.2f}'


def main(argv: list[str]) -> None:
  """Measures all settings, and writes after each."""
  del argv
  jax_settings.pin()
  stored = RESULTS.with_suffix('.json')
  results = json.loads(stored.read_text()) if stored.exists() else {}
  about: dict[str, Any] = {
    'log': pathlib.Path(_EVENTS.value).parent.name,
    'system': _SYSTEM.value,
    'epochs': _EPOCHS.value,
    'sample': _SAMPLE.value,
    'commit': provenance.commit(),
    'settings': {},
  }
  name = f'{about["system"]} {about["log"]}, {about["epochs"]} epochs'
  results[name] = about
  found: dict[str, list[Measured]] = {setting: [] for setting in SETTINGS}
  # As on an accelerator, where products are products.
  with mock.patch.object(platforms, 'on_cpu', lambda _, other, *x: other(*x)):
    for seed in map(int, _SEEDS.value):
      for setting, runs in found.items():
        runs.append(measure(setting, seed))
        progress.say(f'{setting}: {json.dumps(runs[-1].about)}')
        about['events'] = len(runs[-1].users)
        about['settings'][setting] = against(
          runs, found['float32'][: len(runs)]
        )
        atomic.write_atomically(stored, json.dumps(results, indent=1) + '\n')
        atomic.write_atomically(
          RESULTS.with_suffix('.md'), '\n'.join(page(results)) + '\n'
        )


if __name__ == '__main__':
  _CONFIG = flags.DEFINE_string('config', 'event_log', 'A file of configs/.')
  _EVENTS = flags.DEFINE_string('events', None, 'The log.')
  _ITEMS = flags.DEFINE_string('items', '', 'Its item texts.')
  _SYSTEM = flags.DEFINE_string('system', 'dynllm', 'With its variant.')
  _EPOCHS = flags.DEFINE_integer('epochs', 2, 'Of training.')
  _SAMPLE = flags.DEFINE_integer(
    'sample', 6_000, 'Events of a split that are ranked, 0 for all.'
  )
  _SEEDS = flags.DEFINE_list('seeds', ['0', '1'], 'Of training.')
  _DATA = flags.DEFINE_string('data', 'runs/precision', 'Prepared data.')
  flags.mark_flag_as_required('events')
  app.run(main)
