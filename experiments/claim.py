r"""The paper's claim with a real language model: do its facets help?

    python -m experiments.claim --model=.models/smollm2 --encoder=minilm \
        --log=event_log=interactions.csv,items.csv

One system, its facets written by rules, by a language model, by the same model
from another user's purchases (experiments/shuffled_writer.py, the control) and
not at all; texts embedded by hashing and by a language model; some seeds each.
The facets of the language model are best written before, on an accelerator
(experiments/remote_facets.py). Rows that are there are not computed again.
"""

import json
import pathlib
from typing import Any

from absl import app
from absl import flags

from dynllm_jax.storage import atomic
from experiments import exit_status
from experiments import grids
from experiments import pages
from experiments import remote_facets
from experiments import result_rows
from experiments import seeded_rows
from experiments.result_rows import Log
from experiments.result_rows import Row
from experiments.result_rows import Setting

_ENCODER = flags.DEFINE_string('encoder', None, "The encoder's folder.")
_SYSTEM = flags.DEFINE_string('system', 'dynllm+text+counts', 'Which system.')
_EPOCHS = flags.DEFINE_integer(
  'epochs', 0, 'train.num_epochs; 0 for as many as suit the length of the log.'
)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds of each run, from 0.')
_FIELDS = flags.DEFINE_multi_string(
  'field', [], 'NAME=VALUE, a field of config in all runs.'
)
_NAME = flags.DEFINE_string(
  'name', '', 'What the log is called; else as its file in configs/.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/claim', 'Where run folders are kept.'
)

Runs = dict[tuple[str, str], list[Row]]  # by encoder and facets, a row a seed

_NONE, _LLM, _CONTROL = 'none', 'language model', 'the same, shuffled users'


def main(argv: list[str]) -> int:
  """Runs what is missing and writes the page."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  log = result_rows.parse_log('claim', remote_facets.LOG.value)
  runs: Runs = {}
  # Seed by seed: whatever is stopped has compared all choices.
  for seed in range(_SEEDS.value):
    for choice, fields in choices().items():
      setting = Setting(_SYSTEM.value, tuple(fields.items()), seed)
      row = result_rows.run(log, setting, pathlib.Path(_WORKDIR.value))
      runs.setdefault(choice, []).append(row)
      write_page(log, runs)


def choices() -> dict[tuple[str, str], dict[str, Any]]:
  """What is compared: fields by encoder and facets."""
  common = {
    **remote_facets.data_fields(),
    'eval.validation_events': grids.VALIDATION_EVENTS,
    'eval.compare': '()',
    'train.num_epochs': _EPOCHS.value,
    'train.patience': grids.PATIENCE,
    'facets.window_days': remote_facets.DAYS.value,
    **dict(field.split('=', 1) for field in _FIELDS.value),
  }
  written = {
    f'facets.writer.{name}': value
    for name, value in remote_facets.writer_fields().items()
  }
  facets = {
    _NONE: {'model.facets': '()'},
    'rules': {},
    _CONTROL: {
      **written,
      'facets.writer.name': 'experiments.shuffled_writer',
    },
    _LLM: written,
  }
  encoders = {
    'hashing': {},
    pathlib.Path(_ENCODER.value).name: {
      'facets.encoder.name': 'flax',
      'facets.encoder.model': _ENCODER.value,
    },
  }
  return {
    (encoder, facet): {**common, **encoders[encoder], **facets[facet]}
    for encoder in encoders
    for facet in facets
  }


def write_page(log: Log, runs: Runs) -> None:
  """Writes `results/claim_<name>.json` and `.md`.

  Args:
    log: the log.
    runs: finished rows.
  """
  result = summarize(runs, seeded_rows.stored_ranks(log))
  path = result_rows.RESULTS / f'claim_{_name(log)}'
  atomic.write_atomically(
    path.with_suffix('.json'), json.dumps(result, indent=2) + '\n'
  )
  atomic.write_atomically(
    path.with_suffix('.md'), '\n'.join(_page(log, runs, result))
  )


def summarize(runs: Runs, ranks: seeded_rows.Ranks) -> dict[str, Any]:
  """Figures of each choice, and tests of the language model's facets.

  Args:
    runs: finished rows.
    ranks: of a row.

  Returns:
    `figures`, a mean and a spread over seeds by choice, and `tests`: for each
    encoder and rival the difference of the language model's facets.
  """
  figures = [
    {
      'encoder': encoder,
      'facets': facets,
      **seeded_rows.figures(rows),
    }
    for (encoder, facets), rows in runs.items()
  ]
  tests = [
    {
      'encoder': encoder,
      'rival': facets,
      **seeded_rows.compare(runs[encoder, _LLM], rows, metric, ranks),
    }
    for (encoder, facets), rows in runs.items()
    if facets != _LLM and (encoder, _LLM) in runs
    for metric in seeded_rows.METRICS
  ]
  return {'figures': figures, 'tests': tests}


def _epochs(runs: Runs) -> str:
  """How many epochs runs had."""
  counts = sorted({row['epochs'] for rows in runs.values() for row in rows})
  return ' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _name(log: Log) -> str:
  """What the log is called on the page."""
  return _NAME.value or log.name


def _page(log: Log, runs: Runs, result: dict[str, Any]) -> list[str]:
  """The lines of the page."""
  first = next(iter(runs.values()))[0]
  told = {
    facets: rows[0]['facets']['writer']
    for (_, facets), rows in runs.items()
    if facets != _NONE
  }
  return [
    f'# Do facets of a language model help? {_name(log)}',
    '',
    f'Log: {first["source"]}; {" ".join([first["system"], *_FIELDS.value])}; '
    'windows of '
    f'{remote_facets.DAYS.value:g} days; the best of {_epochs(runs)} epochs is '
    'chosen on a fixed sample of '
    f'{grids.VALIDATION_EVENTS:,} validation events; figures are means over '
    'seeds, ± their standard deviation.',
    '',
    *(f'- {facets}: {writer}' for facets, writer in told.items()),
    '',
    *pages.table(
      ['encoder', 'facets', 'seeds', *seeded_rows.heads(first)],
      [
        [f['encoder'], f['facets'], len(f['seeds']), *seeded_rows.cells(f)]
        for f in result['figures']
      ],
    ),
    '',
    '## The language model against the others',
    '',
    'Differences of test figures, of the seeds that both have; the interval of '
    '95 % and p are of a paired bootstrap over users, of gains that are means '
    'over these seeds.',
    '',
    *pages.table(
      ['encoder', 'against', *seeded_rows.COMPARED],
      [
        [t['encoder'], t['rival'], *seeded_rows.compared(t)]
        for t in result['tests']
      ],
    ),
    '',
    '## Commands',
    '',
    '```',
    *(row['command'] for rows in runs.values() for row in rows),
    '```',
    '',
  ]


if __name__ == '__main__':
  flags.mark_flags_as_required(['log', 'model', 'encoder'])
  app.run(main)
