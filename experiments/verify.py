r"""Computes finished rows again, compares, and puts their ranks back.

    python -m experiments.verify --experiment=overall \
        --logs=online_retail=interactions.csv,items.csv --rows=KEY,KEY

Git keeps no ranks of single events, only their check sums (rank_arrays.py).
This trains and tests rows with the commands that they were made with. The
ranks are kept beside the row if they are the same, or if they are close: on
another machine a few ranks change, in figures that are the same to four places.
"""

from collections.abc import Sequence
import json
import pathlib
import tempfile

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.types import InputError
from experiments import exit_status
from experiments import rank_arrays
from experiments import result_rows
from experiments.result_rows import Log
from experiments.result_rows import Row


def verify(log: Log, rows: Sequence[Row]) -> None:
  """Trains and tests stored rows again, and keeps the ranks that agree.

  Prints the figures of every row, stored and new.

  Args:
    log: the log.
    rows: of its folder.

  Raises:
    InputError: if a row was made from other data or another configuration, or,
      once all are verified, if the figures of some came out different.
  """
  different = [row['key'] for row in rows if not _verify_row(log, row)]
  if different:
    raise InputError(
      f'{log.folder}: the ranks of {", ".join(different)} came out different '
      'and were not kept; allowed: the commit and the kind of machine that the '
      "row's .json names, or to remove the row, so that it is computed anew"
    )


def _verify_row(log: Log, row: Row) -> bool:
  """Whether a row's ranks come out the same or close, and are kept."""
  setting = result_rows.setting_of(row)
  result_rows.check_origin(
    log.folder / f'{row["key"]}.json', row, result_rows.origin(log, setting)
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    result_rows.execute(result_rows.command(log, setting, name))
    new = json.loads((folder / 'results.json').read_text())
    arrays = rank_arrays.of_run(folder)

  if new['data']['fingerprint'] != row['fingerprint']:
    raise InputError(
      f'--logs: the log of {row["key"]} in {log.folder} is another one; '
      'allowed: the same'
    )
  for metric in ('recall@10', 'ndcg@10', 'mrr'):
    progress.say(
      f'{log.name} {setting.system} seed {setting.seed} {metric}: stored '
      f'{row["test"][metric]:.6f}, again {new["test"][metric]:.6f}'
    )
  found = rank_arrays.agreement(arrays, row)
  if found != 'different':
    rank_arrays.write(log.folder, row['key'], arrays)
  progress.say(
    f'{log.name} {setting.system} seed {setting.seed} ranks of '
    f'{len(arrays.users):,} test events: {found}'
  )
  return found != 'different'


def select_rows(log: Log, keys: Sequence[str]) -> list[Row]:
  """The rows of some keys; without keys, all whose ranks are not here.

  Raises:
    InputError: if there is no row of a key.
  """
  rows = {row['key']: row for row in result_rows.read_all(log)}
  for key in keys:
    if key not in rows:
      raise InputError(
        f'--rows: no row {key!r} in {log.folder}; allowed: {", ".join(rows)}'
      )
  if keys:
    return [rows[key] for key in keys]
  return [
    row for row in rows.values() if result_rows.read_arrays(log, row) is None
  ]


def main(argv: list[str]) -> int:
  """Reads the flags and verifies the rows that they name."""
  del argv
  values = flags.FLAGS

  def work() -> None:
    for text in values.logs:
      log = result_rows.parse_log(values.experiment, text)
      verify(log, select_rows(log, values.rows))

  return exit_status.exit_status(work)


if __name__ == '__main__':
  # Not above: experiments/overall.py imports this module and has --logs, too.
  flags.DEFINE_string('experiment', 'overall', 'Whose rows.')
  flags.DEFINE_multi_string(
    'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
  )
  flags.DEFINE_list('rows', [], 'Keys; default: all without their ranks.')
  flags.mark_flag_as_required('logs')
  app.run(main)
