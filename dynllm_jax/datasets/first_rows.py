"""A look at the first rows of a log: what is understood of them.

Nothing is prepared or kept, and of a log of any size the first rows alone are
read; of the item table all, since its order is not that of the log.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import datetime

import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import delimited
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns

_ROWS = 1000  # of a file that are read
_SHOWN = 5  # of them that are shown


def show(
  data_config: ml_collections.ConfigDict, report: Callable[[str], None] = print
) -> None:
  """Says how the files of `config.data` are read, with example rows.

  Args:
    data_config: `config.data`, for the source `event_log`.
    report: receives lines.

  Raises:
    InputError: for whatever is wrong with the first rows.
  """
  logs = raw_log.event_files(data_config)
  head = dataclasses.replace(logs[0], first_rows=_ROWS)
  columns = raw_log.event_columns(data_config, [head])
  log = raw_log.events(columns, data_config)
  _report_files(logs, report)
  _report_columns(columns, report)
  report(f'check: {log.unit}')
  for what, count in log.counts.items():
    report(f'check: {what}: {count:,}')

  tables = raw_log.item_files(data_config)
  texts: dict[str, str] = {}
  if tables:
    table = raw_log.item_columns(data_config, tables)
    items = item_tables.read_items(table, data_config.bad_rows)
    _report_files(tables, report)
    _report_columns(table, report)
    titles = zip(items.item_ids, items.titles, items.categories, items.brands)
    texts = {row[0]: ', '.join(filter(None, row[1:])) for row in titles}
    _report_found(log, items, report)
  else:
    report('check: no item table, so that items have no texts')
  _report_rows(log, texts, report)


def _report_files(
  files: Sequence[source_files.File], report: Callable[[str], None]
) -> None:
  for file in files[:1]:
    how = file.kind
    if how == 'csv':
      how = f'text, {delimited.delimiter(file)!r} between columns'
      how += ', first line has their names' if file.header else ', no header'
    more = f', and {len(files) - 1} more files' if len(files) > 1 else ''
    report(f'check: {file.field}: {file.path}{more}: {how}')


def _report_columns(
  columns: columns_by_role.Columns, report: Callable[[str], None]
) -> None:
  """Which column is which, with values, and which are not read."""
  for role, name in columns.names.items():
    cells = text_columns.texts(columns.table[role])
    some = list(dict.fromkeys(cells))[:3]
    values = ', '.join(map(checks.shown, some))
    report(f'check:   {role} is the column {checks.shown(name)}, as {values}')
  others = [
    name
    for name in file_formats.column_names(columns.file)
    if name not in columns.names.values()
  ]
  if others:
    report(f'check:   not read: {", ".join(map(checks.shown, others[:20]))}')


def _report_found(
  log: raw_log.Events, items: item_tables.Items, report: Callable[[str], None]
) -> None:
  """How many items of the first rows are in the item table."""
  bought = np.unique(log.items.astype(str))
  found = int(np.isin(bought, items.item_ids.astype(str)).sum())
  report(
    f'check: {found:,} of {len(bought):,} items of these rows are in the item '
    f'table, which has {len(items.item_ids):,}'
  )
  if item_tables.too_few_found(len(bought) - found, len(bought)):
    report(f'check: warning: {item_tables.mismatch(bought, items.item_ids)}')


def _report_rows(
  log: raw_log.Events, texts: dict[str, str], report: Callable[[str], None]
) -> None:
  report('check: events as they are read:')
  for row in range(min(_SHOWN, len(log.users))):
    moment = datetime.datetime.fromtimestamp(int(log.times[row]), datetime.UTC)
    item = log.items[row]
    about = f' ({checks.shown(texts[item])})' if texts.get(item) else ''
    report(
      f'check:   user {log.users[row]!r} takes item {item!r}{about} at '
      f'{moment:%Y-%m-%d %H:%M:%S} UTC'
    )
