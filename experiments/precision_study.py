r"""What the precision of products, and of what is kept, does to recall.

    python -m experiments.precision_study --config=amazon_beauty \
        --events=LOG/interactions.csv --items=LOG/items.csv

A system trains from one seed with products of float32, tf32 and bf16
(`train.precision`), and with memories kept as float16 (`model.memory_dtype`).
XLA's CPU backend multiplies in float32 whatever it is told, so here the factors
of every product of a step are rounded first, forward and backward, as tensor
cores and a TPU's matrix unit do; a program has the form that is written for
accelerators, whose products are matrix products. A run is ranked in float32,
and once more with products rounded as in training, which is what an accelerator
does where JAX's default is left.

Adds to `experiments/results/precision.json` and writes `.md`.
"""

from collections.abc import Iterator
import contextlib
import importlib
import json
import pathlib
from typing import Any
from unittest import mock

from absl import app
from absl import flags
import jax
from jax.interpreters import mlir
import jax.numpy as jnp
import numpy as np

from dynllm_jax import progress
from dynllm_jax.engine import metrics
from dynllm_jax.kernels import platforms
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from experiments import pages

RESULTS = pathlib.Path(__file__).parent / 'results' / 'precision'
MANTISSA_BITS = {'tf32': 10, 'bf16': 7}
_EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@contextlib.contextmanager
def rounded(mantissa_bits: int | None) -> Iterator[list[int]]:
  """Products of float32 that are lowered meanwhile round their factors.

  Those that ask for the highest precision do not.

  Args:
    mantissa_bits: that a factor keeps; None for all.

  Yields:
    A list with how many were lowered so.
  """
  count = [0]

  def product(left: Any, right: Any, **how: Any) -> Any:
    count[0] += 1
    return jax.lax.dot_general_p.bind(
      *(jax.lax.reduce_precision(x, 8, mantissa_bits) for x in (left, right)),
      **{**how, 'precision': _EXACT},
    )

  # Looked up when a program is lowered; the rule of all platforms stays.
  by_platform = mlir._platform_specific_lowerings['cpu']  # type: ignore
  plain = mlir._lowerings[jax.lax.dot_general_p].rule  # type: ignore

  def rule(context: Any, left: Any, right: Any, **how: Any) -> Any:
    floats = all(x.dtype == jnp.float32 for x in context.avals_in)
    if how['precision'] == _EXACT or not floats:
      return plain(context, left, right, **how)
    return mlir.lower_fun(product, multiple_results=False)(
      context, left, right, **how
    )

  # What was compiled before, or is meanwhile, is no other's.
  jax.clear_caches()
  with mock.patch.dict(by_platform):
    if mantissa_bits is not None:
      mlir.register_lowering(jax.lax.dot_general_p, rule, platform='cpu')
    yield count
  jax.clear_caches()


def measure(setting: str, seed: int) -> dict[str, Any]:
  """Trains and ranks.

  Args:
    setting: of --settings.
    seed: of the run.

  Returns:
    `setting`, `seed`, `rounded_products`, `loss` of the last epoch, and
    recall@10 of validation and test, `ranked_in_float32` and `ranked_rounded`.
  """
  config = importlib.import_module(f'configs.{_CONFIG.value}').get_config(
    _SYSTEM.value
  )
  config.data.source = 'event_log'
  config.data.events, config.data['items'] = _EVENTS.value, _ITEMS.value
  config.data.dir, config.seed, config.eval.compare = _DATA.value, seed, ()
  if setting == 'float16 memory':
    config.model.memory_dtype = 'float16'
  bits = MANTISSA_BITS.get(setting)

  run = prepared.prepare(config)
  with rounded(bits) as count:
    state = prepared.initial_state(run)
    for _ in range(_EPOCHS.value):
      state, record = prepared.train_one_epoch(run, state)
  found = {'ranked_in_float32': _recall(run, state)}
  if bits is not None:
    with rounded(bits):
      found['ranked_rounded'] = _recall(run, state)
  return {
    'setting': setting,
    'seed': seed,
    'rounded_products': count[0],
    'loss': record['loss'],
    **found,
  }


def _recall(run: prepared.PreparedRun, state: Any) -> dict[str, float]:
  """Recall@10 of both splits."""
  ranked = prepared.rank_splits(
    run, state, ('validation', 'test'), _SAMPLE.value
  )
  return {
    split: metrics.summary(ranks, [10])['recall@10']
    for split, (ranks, _) in ranked.items()
  }


def page(results: dict[str, Any]) -> list[str]:
  """The page of `results`, its lines."""
  lines = ['# Precision and recall', '']
  for about in results.values():
    rows = [
      [
        setting,
        str(len(of_one)),
        *(
          _mean(of_one, ranking, split)
          for ranking in ('ranked_in_float32', 'ranked_rounded')
          for split in ('validation', 'test')
        ),
      ]
      for setting in dict.fromkeys(run['setting'] for run in about['runs'])
      for of_one in [[r for r in about['runs'] if r['setting'] == setting]]
    ]
    lines += [
      f'## {about["system"]} on {about["log"]}',
      '',
      f'Epochs: {about["epochs"]}; ranked events of a split: '
      f'{about["sample"] or "all"}; commit {about["commit"]}. Recall@10, means '
      'over seeds.',
      '',
      *pages.table(
        [
          'products of a step',
          'seeds',
          'validation',
          'test',
          'validation, ranked so too',
          'test, ranked so too',
        ],
        rows,
      ),
      '',
    ]
  return lines[:-1]


def _mean(runs: list[dict[str, Any]], ranking: str, split: str) -> str:
  values = [run[ranking][split] for run in runs if ranking in run]
  return f'{np.mean(values):.4f}' if values else '-'


def main(argv: list[str]) -> None:
  """Measures all settings, and writes after each."""
  del argv
  jax_settings.pin()
  stored = RESULTS.with_suffix('.json')
  results = json.loads(stored.read_text()) if stored.exists() else {}
  about = {
    'log': pathlib.Path(_EVENTS.value).parent.name,
    'system': _SYSTEM.value,
    'epochs': _EPOCHS.value,
    'sample': _SAMPLE.value,
    'commit': provenance.commit(),
    'runs': [],
  }
  results[f'{about["system"]} {about["log"]}'] = about
  # As on an accelerator, where products are products.
  with mock.patch.object(platforms, 'on_cpu', lambda _, other, *x: other(*x)):
    for seed in map(int, _SEEDS.value):
      for setting in _SETTINGS.value:
        about['runs'].append(measure(setting, seed))
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
  _SEEDS = flags.DEFINE_list('seeds', ['0'], 'Of training.')
  _SETTINGS = flags.DEFINE_list(
    'settings',
    ['float32', 'tf32', 'bf16', 'float16 memory'],
    'Precisions of products, or "float16 memory".',
  )
  _DATA = flags.DEFINE_string('data', 'runs/precision', 'Prepared data.')
  flags.mark_flag_as_required('events')
  app.run(main)
