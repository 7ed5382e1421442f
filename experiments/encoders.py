r"""What another encoder of texts adds: one system, two encoders, some seeds.

    python -m experiments.encoders --model=DIR \
        --logs=amazon_beauty=interactions.csv,items.csv

DIR is a sentence encoder of Hugging Face transformers, for the texts of items
and of facets; the commands on the page name it as it is given here. Rows that
are there are not computed again.
"""

import json
import os
import pathlib
from typing import Any

from absl import app
from absl import flags

from dynllm_jax.storage import atomic
from experiments import exit_status
from experiments import grids
from experiments import pages
from experiments import result_rows
from experiments import seeded_rows
from experiments.result_rows import Log
from experiments.result_rows import Row
from experiments.result_rows import Setting

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_MODEL = flags.DEFINE_string('model', None, 'Directory of the encoder.')
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text+counts', 'Which system reads the texts.'
)
_EPOCHS = flags.DEFINE_integer('epochs', 3, 'Epochs of a run.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds of each run, from 0.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/encoders', 'Where run folders are kept.'
)

Runs = dict[str, list[Row]]  # by encoder, a row a seed


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  return exit_status.exit_status(_work)


def _work() -> None:
  for text in _LOGS.value:
    log = result_rows.parse_log('encoders', text)
    runs: Runs = {}
    # Seed by seed: whatever is stopped has compared all encoders.
    for seed in range(_SEEDS.value):
      for encoder, fields in encoders(_MODEL.value).items():
        setting = Setting(_SYSTEM.value, (*_common(), *fields.items()), seed)
        row = result_rows.run(log, setting, pathlib.Path(_WORKDIR.value))
        runs.setdefault(encoder, []).append(row)
        write_page(log, runs)


def encoders(model: str) -> dict[str, dict[str, Any]]:
  """What is compared: fields by encoder, hashing first.

  Args:
    model: directory of the encoder that is compared with hashing.
  """
  name = os.path.basename(os.path.normpath(model))
  own = {'facets.encoder.name': 'flax', 'facets.encoder.model': model}
  white = {'model.text_whitening': True}
  return {
    'hashing': {},
    'hashing, whitened': white,
    name: own,
    f'{name}, whitened': own | white,
  }


def _common() -> tuple[tuple[str, Any], ...]:
  return (
    ('eval.validation_events', grids.VALIDATION_EVENTS),
    ('train.num_epochs', _EPOCHS.value),
    ('train.patience', grids.PATIENCE),
    ('eval.compare', '()'),
  )


def write_page(log: Log, runs: Runs) -> None:
  """Writes `results/encoders_<log>.json` and `.md`.

  Args:
    log: the log.
    runs: finished rows.
  """
  base, *others = runs
  ranks = seeded_rows.stored_ranks(log)
  result = {
    'figures': [
      {'encoder': encoder, **seeded_rows.figures(rows)}
      for encoder, rows in runs.items()
    ],
    'tests': [
      {
        'encoder': encoder,
        **seeded_rows.compare(runs[encoder], runs[base], metric, ranks),
      }
      for encoder in others
      for metric in seeded_rows.METRICS
    ],
  }
  path = result_rows.RESULTS / f'encoders_{log.name}'
  atomic.write_atomically(
    path.with_suffix('.json'), json.dumps(result, indent=2) + '\n'
  )
  atomic.write_atomically(
    path.with_suffix('.md'), '\n'.join(_page(log, runs, result))
  )


def _page(log: Log, runs: Runs, result: dict[str, Any]) -> list[str]:
  """The lines of the page."""
  first = next(iter(runs.values()))[0]
  texts = dict.fromkeys(rows[0]['facets']['encoder'] for rows in runs.values())
  return [
    f'# Encoders: {log.name}',
    '',
    f'Log: {first["source"]}; {first["system"]}, at most {_EPOCHS.value} '
    f'epoch{"s" * (_EPOCHS.value > 1)}; the best is chosen on a fixed sample '
    f'of {grids.VALIDATION_EVENTS:,} validation events. Facets: '
    f'{first["facets"]["writer"]}; texts of items and facets encoded by '
    f'{"; or by ".join(texts)}. Whitened: texts as the text term reads them '
    '(SPEC 3.11). Figures are means over seeds, ± their standard deviation.',
    '',
    *pages.table(
      ['encoder', 'seeds', *seeded_rows.heads(first)],
      [
        [f['encoder'], len(f['seeds']), *seeded_rows.cells(f)]
        for f in result['figures']
      ],
    ),
    '',
    'Differences of test figures from the first row, of the seeds that both '
    'have; the interval of 95 % and p are of a paired bootstrap over users, of '
    'gains that are means over these seeds.',
    '',
    *pages.table(
      ['encoder', *seeded_rows.COMPARED],
      [[t['encoder'], *seeded_rows.compared(t)] for t in result['tests']],
    ),
    '',
    'Commits: '
    + ', '.join(
      sorted(
        {pages.commit(r['commit']) for rows in runs.values() for r in rows}
      )
    )
    + '.',
    '',
    '## Commands',
    '',
    '```',
    *(row['command'] for rows in runs.values() for row in rows),
    '```',
    '',
  ]


if __name__ == '__main__':
  flags.mark_flags_as_required(['logs', 'model'])
  app.run(main)
