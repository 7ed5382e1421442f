"""Amazon product reviews as published in 2014, 2018 and 2023."""

from typing import Any

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import RawLog

# Each role's keys: the editions of 2014 and 2018, then that of 2023, in which
# `parent_asin` is the product and `asin` one of its variants.
_REVIEW = {
  'user': ('reviewerID', 'user_id'),
  'item': ('parent_asin', 'asin'),
  'time': ('unixReviewTime', 'timestamp'),
}
_METADATA = {
  'item': ('parent_asin', 'asin'),
  'title': ('title',),
  'category': ('categories', 'category', 'main_category'),
  'brand': ('brand', 'store'),
}

files = event_log.files


def read(data_config: Any) -> RawLog:
  """Reads published reviews and metadata, or a log made of them before.

  Metadata lines may be Python literals rather than JSON (2014). Of several
  category paths of a product the first is taken; its parts are joined with
  ' > '. A rating is a purchase, whatever its stars.

  Args:
    data_config: `config.data`. Files with the configured columns are read by
      `event_log`; the published keys are known.

  Raises:
    InputError: as `event_log.read`.
  """
  paths = files(data_config)
  there = file_formats.column_names(paths[0])
  if {
    data_config.user_column,
    data_config.item_column,
    data_config.time_column,
  } <= set(there):
    return event_log.read(data_config)
  columns = columns_by_role.read_columns(
    paths[0], _present(_REVIEW, there), where=data_config.where
  )
  log = raw_log.events(columns, data_config)
  source = f'amazon reviews {raw_log.name(paths[0].path)}'
  if len(paths) == 1:
    return raw_log.raw_log(
      log, raw_log.no_items(), columns.counts, f'{source} without metadata'
    )
  table = columns_by_role.read_columns(
    paths[1],
    _present(_METADATA, file_formats.column_names(paths[1])),
    optional=raw_log.TEXTS,
  )
  items = raw_log.item_table(table, data_config.bad_rows)
  source += f' with metadata {raw_log.name(paths[1].path)}'
  return raw_log.raw_log(log, items, columns.counts, source)


def _present(
  keys: dict[str, tuple[str, ...]], there: list[str]
) -> dict[str, str]:
  """Each role's first key that the file has."""
  return {
    role: next((key for key in names if key in there), names[0])
    for role, names in keys.items()
  }
