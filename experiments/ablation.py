r"""What each part of DynLLM adds: one run without it, or with another choice.

    python -m experiments.ablation \
        --logs=amazon_beauty=interactions.csv,items.csv
"""

import pathlib

from absl import app
from absl import flags

from dynllm_jax.types import FACETS
from experiments import exit_status
from experiments import result_rows
from experiments import studies

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text', 'Whose parts are left out.'
)
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Most epochs of a run.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of each run.')
_MAIN_ONLY = flags.DEFINE_bool(
  'main_only', False, 'Only the five main ablations.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/ablation', 'Where run folders are kept.'
)

MAIN: studies.Changes = {
  'as configured': {},
  'without facets': {'model.facets': '()'},
  'without distillation': {'model.distill.order': 'none'},
  'without item text': {'model.item_text': False},
  'without memory': {'model.memory': False},
  'without neighborhood': {'model.neighborhood': False},
}
OTHERS: studies.Changes = {
  **{
    f'without {name}': {
      'model.facets': str(tuple(f for f in FACETS if f != name))
    }
    for name in FACETS
  },
  'without projection': {'model.projection': 'none'},
  'linear projection': {'model.projection': 'linear'},
  'projection by the logarithm': {'model.projection': 'log_interval'},
  'distillation in index order': {'model.distill.order': 'index'},
  'distillation by mask': {'model.distill.order': 'mask'},
  'distillation by mask, sigmoid': {
    'model.distill.order': 'mask',
    'model.distill.gate': 'sigmoid',
  },
  'blend fusion': {'model.fusion.mode': 'blend'},
  'residual fusion': {'model.fusion.mode': 'residual'},
  'ties one by one': {'model.update_ties': 'each'},
  'without item ids': {'model.item_id_embedding': False},
  'without event features': {'model.event_features': False},
  'without copy term': {'model.copy_term': False},
  'without walk term': {'model.walk_term': False},
  'without text term': {'model.text_term': False},
  'softmax, 512 negatives': {
    'train.loss': 'softmax',
    'train.num_negatives': 512,
  },
  'negatives sold by then': {'train.negatives': 'sold'},
  'margin, one negative': {'train.loss': 'margin', 'train.num_negatives': 1},
}


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  study = studies.Study(
    'Ablation',
    _SYSTEM.value,
    epochs=_EPOCHS.value,
    seed=_SEED.value,
    workdir=pathlib.Path(_WORKDIR.value),
  )
  changes = MAIN if _MAIN_ONLY.value else {**MAIN, **OTHERS}

  def work() -> None:
    for text in _LOGS.value:
      log = result_rows.parse_log('ablation', text)
      records = studies.run(log, study, changes)
      studies.write_page(log, study, records)

  return exit_status.exit_status(work)


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
