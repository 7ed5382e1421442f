r"""What the precision of products, and of what is kept, does to recall.

    python -m experiments.precision_study --config=amazon_beauty \
        --events=LOG/interactions.csv --items=LOG/items.csv

A system trains from one seed with products of float32, tf32 and bf16
(`train.precision`), with memories kept as float16 (`model.memory_dtype`), and
from another seed in float32, which says how far two runs lie apart in any case.
Each is compared with the first by a paired test of test Recall@10.

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
from dynllm_jax.engine import metrics
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
  'float32, another seed': {'train.precision': 'float32'},
  'tf32': {'train.precision': 'tf32'},
  'bf16': {'train.precision': 'bf16'},
  'float16 memory': {'model.memory_dtype': 'float16'},
}
_EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@contextlib.contextmanager
def rounded(mantissa_bits: int) -> Iterator[None]:
  """Products of float32 that are lowered meanwhile round their factors.

  Those that ask for the highest precision do not.

  Args:
    mantissa_bits: that a factor keeps.

  Raises:
    RuntimeError: at the end, if no product was lowered so.
  """
  # JAX looks a rule up whenever it lowers a product.
  plain = mlir._platform_specific_lowerings['cpu'][  # type: ignore
    jax.lax.dot_general_p
  ].rule
  count = 0

  def product(left: Any, right: Any, **how: Any) -> Any:
    factors = (
      jax.lax.reduce_precision(x, 8, mantissa_bits) for x in (left, right)
    )
    return jax.lax.dot_general_p.bind(*factors, **{**how, 'precision': _EXACT})

  def rule(context: Any, left: Any, right: Any, **how: Any) -> Any:
    nonlocal count
    floats = all(x.dtype == jnp.float32 for x in context.avals_in)
    if how['precision'] == _EXACT or not floats:
      return plain(context, left, right, **how)
    count += 1
    return mlir.lower_fun(product, multiple_results=False)(
      context, left, right, **how
    )

  # What was compiled before, or is meanwhile, is no other's.
  jax.clear_caches()
  mlir.register_lowering(jax.lax.dot_general_p, rule, platform='cpu')
  try:
    yield
  finally:
    mlir.register_lowering(jax.lax.dot_general_p, plain, platform='cpu')
    jax.clear_caches()
  if not count:
    raise RuntimeError('no product was rounded')


class Measured(NamedTuple):
  """What a setting gave.

  Attributes:
    about: `setting`, `seed`, `loss` of the last epoch, `memory_mb` of the
      tables of states, and `validation`: Recall@10, ranked in float32.
    ranks: f64[events] of the sample of test, ranked in float32.
    ranked_rounded: the same with rounded products; None where none are.
    users: i32[events] of that sample.
  """

  about: dict[str, Any]
  ranks: np.ndarray
  ranked_rounded: np.ndarray | None
  users: np.ndarray


def measure(setting: str) -> Measured:
  """Trains with a setting and ranks."""
  config = importlib.import_module(f'configs.{_CONFIG.value}').get_config(
    _SYSTEM.value
  )
  config.data.source = 'event_log'
  config.data.events, config.data['items'] = _EVENTS.value, _ITEMS.value
  config.data.dir, config.eval.compare = _DATA.value, ()
  config.seed = int(setting.endswith('another seed'))
  config.model.memory_dtype = SETTINGS[setting].get(
    'model.memory_dtype', 'float32'
  )
  bits = MANTISSA_BITS.get(setting)
  products = rounded(bits) if bits else contextlib.nullcontext()

  run = prepared.prepare(config)
  with products:
    state = prepared.initial_state(run)
    for _ in range(_EPOCHS.value):
      state, record = prepared.train_one_epoch(run, state)
  sample = _SAMPLE.value
  splits = ('validation', 'test')
  ranked = prepared.rank_splits(run, state, splits, sample)
  ranked_rounded = None
  if bits:
    with rounded(bits):
      ranked_rounded = prepared.rank_splits(run, state, splits, sample)

  plan = run.rank_plans['test']
  chosen = evaluate.sample_batches(plan, sample)
  events = np.concatenate(
    [
      start + np.arange(size)
      for start, size in zip(
        plan.batches.start[chosen], plan.batches.size[chosen]
      )
    ]
  )
  about = {
    'setting': setting,
    'seed': config.seed,
    'loss': record['loss'],
    'memory_mb': sum(
      side.state.nbytes
      for side in (state.memory.user, state.memory.item)
      if side
    )
    / 1e6,
    'validation': metrics.summary(ranked['validation'][0], [10])['recall@10'],
  }
  return Measured(
    about,
    ranked['test'][0],
    ranked_rounded and ranked_rounded['test'][0],
    run.log.users[events],
  )


def against(found: Measured, first: Measured) -> dict[str, Any]:
  """A setting's figures, with its test Recall@10 beside float32's.

  Args:
    found: of the setting.
    first: of float32.

  Returns:
    `about`, and `ranked_in_float32` and `ranked_rounded`: a pair each of
    `verdict.compare`; None where nothing was ranked so.
  """

  def pair(ranks: np.ndarray | None) -> dict[str, Any] | None:
    if ranks is None:
      return None
    both = {found.about['setting']: ranks, 'the first': first.ranks}
    of_pair = verdict.compare(both, found.users, [])['verdict']
    return {x: of_pair[x] for x in ('value', 'difference', 'interval', 'p')}

  return {
    **found.about,
    'ranked_in_float32': pair(found.ranks),
    'ranked_rounded': pair(found.ranked_rounded),
  }


def page(results: dict[str, Any]) -> list[str]:
  """The page of `results`, its lines."""
  lines = [
    '# Precision and recall',
    '',
    'Test Recall@10 by the precision of the products of a training step, or of '
    'what is kept, emulated on a CPU (experiments/precision_study.py). In '
    'brackets: the difference from the first row, its 95 % interval and p, '
    'paired by event, resampled by user; "another seed" says how far two runs '
    'lie apart without any rounding. Memory: the tables of states. Bytes a '
    "step: TGN's, of a program compiled for an H100 (gpu_compile.md).",
    '',
  ]
  compiled = json.loads(COMPILED.read_text())['systems']
  for about in results.values():
    rows = [
      [
        run['setting'],
        f'{run["validation"]:.4f}',
        _shown(run['ranked_in_float32'], run is about['runs'][0]),
        _shown(run['ranked_rounded']),
        f'{run["memory_mb"]:.1f} MB',
        _bytes(run['setting'], compiled),
      ]
      for run in about['runs']
    ]
    lines += [
      f'## {about["system"]} on {about["log"]}',
      '',
      f'Epochs: {about["epochs"]}; ranked events: {about["events"]:,} of test '
      f'({about["sample"] or "all"} asked for), as many of validation; commit '
      f'{about["commit"]}.',
      '',
      *pages.table(
        [
          'setting',
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


def _shown(pair: dict[str, Any] | None, first: bool = False) -> str:
  """Recall@10, and the difference from the first row unless it is that."""
  if pair is None:
    return '-'
  if first:
    return f'{pair["value"]:.4f}'
  low, high = pair['interval']
  return (
    f'{pair["value"]:.4f} ({pair["difference"]:+.4f}, {low:+.4f} to '
    f'{high:+.4f}, {verdict.shown_p(pair["p"])})'
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
    'runs': [],
  }
  results[f'{about["system"]} {about["log"]}'] = about
  first = None
  # As on an accelerator, where products are products.
  with mock.patch.object(platforms, 'on_cpu', lambda _, other, *x: other(*x)):
    for setting in SETTINGS:
      found = measure(setting)
      first = first or found
      about['events'] = len(found.ranks)
      about['runs'].append(against(found, first))
      progress.say(json.dumps(about['runs'][-1]))
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
  _DATA = flags.DEFINE_string('data', 'runs/precision', 'Prepared data.')
  flags.mark_flag_as_required('events')
  app.run(main)
