"""Any event log: CSV, Parquet or JSON lines, with an optional item table."""

from typing import Any

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.types import RawLog


def files(data_config: Any) -> list[source_files.File]:
  """The files that the log is made of: the events, and the items if named."""
  # `data_config.items` would be the method of that name.
  fields = ['events'] + (['items'] if data_config['items'] else [])
  return [source_files.File.of(data_config, field) for field in fields]


def read(data_config: Any) -> RawLog:
  """Reads the log that `config.data` describes (SPEC 2.1, 2.2).

  `where` chooses rows first; then bad rows stop the run or are dropped and
  counted. Ids stay as they are written. Times are unix seconds, milli-, micro-
  or nanoseconds or ISO 8601; see `values.times`.

  Args:
    data_config: `config.data`.

  Raises:
    InputError: for a file that cannot be read, a missing column, a filter that
      leaves nothing, or a bad row.
  """
  there = files(data_config)
  columns = columns_by_role.read_columns(
    there[0],
    {
      'user': data_config.user_column,
      'item': data_config.item_column,
      'time': data_config.time_column,
    },
    where=data_config.where,
  )
  log = raw_log.events(columns, data_config)
  source = f'event log {raw_log.name(there[0].path)}'
  if len(there) == 1:
    return raw_log.raw_log(
      log,
      raw_log.no_items(),
      columns.counts,
      f'{source} without an item table',
    )
  table = columns_by_role.read_columns(
    there[1],
    {
      'item': data_config.items_item_column or data_config.item_column,
      'title': data_config.title_column,
      'category': data_config.category_column,
      'brand': data_config.brand_column,
    },
    optional=raw_log.TEXTS,
  )
  absent = [role for role in raw_log.TEXTS if role not in table.names]
  source += f' with items {raw_log.name(there[1].path)}'
  if absent:
    source += f' (which has no column for {", ".join(absent)})'
  items = raw_log.item_table(table, data_config.bad_rows)
  return raw_log.raw_log(log, items, columns.counts, source)
