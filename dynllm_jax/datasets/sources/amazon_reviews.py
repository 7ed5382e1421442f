"""Amazon product reviews as published in 2014, 2018 and 2023."""

from collections.abc import Mapping
from collections.abc import Sequence

import ml_collections

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import raw_log
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

files = raw_log.files


def read(data_config: ml_collections.ConfigDict) -> RawLog:
  """Reads published reviews and metadata, or a log that was made from them.

  Metadata lines may be Python literals rather than JSON (2014). Of several
  category paths of a product the first is taken; its levels are joined with
  ' > '. A rating is a purchase, whatever its stars.

  Args:
    data_config: `config.data`. Files with the configured columns are read as
      the source `event_log` reads them; the published keys are known.

  Raises:
    InputError: as `raw_log.read_configured`.
  """
  reviews = raw_log.event_files(data_config)
  metadata = raw_log.item_files(data_config)
  there = file_formats.column_names(reviews[0])
  if raw_log.has_configured_columns(there, data_config):
    return raw_log.read_configured(data_config)

  columns = columns_by_role.read_columns(
    reviews, _present(_REVIEW, there), where=data_config.where
  )
  log = raw_log.events(columns, data_config)
  source = f'amazon reviews {raw_log.file_names(reviews)}'
  if not metadata:
    return raw_log.assemble(
      log,
      item_tables.no_items(),
      columns.counts,
      f'{source} without metadata',
    )

  table = columns_by_role.read_columns(
    metadata,
    {
      'item': _present(_METADATA, file_formats.column_names(metadata[0]))[
        'item'
      ],
      **{role: _METADATA[role] for role in item_tables.TEXTS},
    },
  )
  items = item_tables.read_items(table, data_config.bad_rows)
  source += f' with metadata {raw_log.file_names(metadata)}'
  return raw_log.assemble(log, items, columns.counts, source)


def _present(
  keys: Mapping[str, Sequence[str]], there: Sequence[str]
) -> dict[str, str]:
  """Each role's first key that a file has."""
  return {
    role: next((key for key in names if key in there), names[0])
    for role, names in keys.items()
  }
