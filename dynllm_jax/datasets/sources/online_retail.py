"""UCI "Online Retail" (and "II"): the invoice lines of a giftware web shop."""

import dataclasses

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import RawLog

# Each role's names in the two published editions.
_COLUMNS = {
  'invoice': ('InvoiceNo', 'Invoice'),
  'item': ('StockCode',),
  'title': ('Description',),
  'quantity': ('Quantity',),
  'time': ('InvoiceDate',),
  'user': ('CustomerID', 'Customer ID'),
}
# One of the CSV copies in circulation is Latin-1: its pound signs say so.
_ENCODINGS = ('utf8', 'latin1')

files = raw_log.files


def read(data_config: ml_collections.ConfigDict) -> RawLog:
  """Cleans the published invoice lines, or reads a log that was made from them.

  Rules in order, each with its own count: the customer is known, the quantity
  is positive, the invoice is not cancelled (C...), the stock code starts with
  five digits (postage, fees and the like do not), and of the lines of one
  invoice, customer and item the first is kept. An item's title is its most
  frequent description among the lines kept before the last rule; of equally
  frequent ones the first in the file. `where` applies before all rules. Invoice
  dates have no time zone, hence are taken as UTC.

  Args:
    data_config: `config.data`. A file with the configured user, item and time
      columns is read as the source `event_log` reads it; the columns of a raw
      file are known.

  Raises:
    InputError: as `raw_log.read_configured`, or if the rules leave nothing.
  """
  logs = [
    dataclasses.replace(file, encodings=_encodings(file))
    for file in raw_log.event_files(data_config)
  ]
  there = file_formats.column_names(logs[0])
  if raw_log.has_configured_columns(there, data_config):
    return raw_log.read_configured(data_config)

  wanted: dict[str, columns_by_role.Wanted] = {
    role: next((name for name in names if name in there), names[0])
    for role, names in _COLUMNS.items()
  }
  columns = _clean(
    columns_by_role.read_columns(logs, wanted, where=data_config.where)
  )
  log = raw_log.events(columns, data_config, _iso_dates(columns.table['time']))
  items = _titles(log, columns)
  first = _first_lines(log, columns)
  counts = {
    **columns.counts,
    **log.counts,
    'repeated lines of an invoice, customer and item dropped': (
      len(log.kept) - len(first)
    ),
  }
  log = log._replace(
    users=log.users[first],
    items=log.items[first],
    times=log.times[first],
    fractions=log.fractions[first],
    kept=log.kept[first],
    counts={},
  )
  source = f'online_retail {raw_log.file_names(logs)}'
  return raw_log.assemble(log, items, counts, source)


def _encodings(file: source_files.File) -> tuple[str, ...]:
  """The encoding that is configured, and by default the two in circulation."""
  usual = file.encodings == _ENCODINGS[:1]
  return _ENCODINGS if usual else file.encodings


def _clean(columns: columns_by_role.Columns) -> columns_by_role.Columns:
  """Applies the rules that look at one line, and counts what each drops."""
  text = {
    role: text_columns.texts(columns.table[role])
    for role in ('user', 'invoice', 'item')
  }
  quantity = text_columns.as_text(columns.table['quantity']).cast(pa.string())
  whole = pc.match_substring_regex(quantity, r'^-?\d+(\.0+)?$')
  number = pc.if_else(whole, quantity, None).cast(pa.float64())
  rules = {
    'lines without a customer dropped': text['user'] != '',
    'lines without a positive quantity dropped': pc.fill_null(
      pc.greater(number, 0), False
    ).to_numpy(zero_copy_only=False),
    'cancelled lines dropped': ~_matches(text['invoice'], '^[Cc]'),
    'lines whose stock code is no product dropped': _matches(
      text['item'], '^[0-9]{5}'
    ),
  }

  counts = dict(columns.counts)
  keep = np.ones(len(quantity), bool)
  for rule, passed in rules.items():
    counts[rule] = int((keep & ~passed).sum())
    keep &= passed
  if not keep.any():
    raise columns.file.error(f'no line is left by the rules: {counts}')

  table = columns.table.filter(pa.array(keep))
  # Copies that went through floats write a customer as 17850.0.
  user = pc.replace_substring_regex(
    text_columns.as_text(table['user']).cast(pa.string()), r'\.0$', ''
  )
  table = table.set_column(table.column_names.index('user'), 'user', user)
  return dataclasses.replace(
    columns, table=table, rows=columns.rows[keep], counts=counts
  )


def _matches(text: np.ndarray, pattern: str) -> np.ndarray:
  return text_columns.matches(pa.array(text, pa.string()), pattern)


def _iso_dates(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Turns dates such as 12/1/2010 8:26 into ISO 8601; leaves others alone."""
  if pa.types.is_timestamp(column.type):
    return column
  text = text_columns.as_text(column).cast(pa.string())
  american = pc.strptime(text, '%m/%d/%Y %H:%M', 's', error_is_null=True)
  return pa.chunked_array(
    [pc.coalesce(pc.strftime(american, '%Y-%m-%dT%H:%M:%S'), text)]
  )


def _titles(
  log: raw_log.Events, columns: columns_by_role.Columns
) -> item_tables.Items:
  """Every item's most frequent description."""
  items, item_ids = text_columns.number(log.items)
  texts, distinct = text_columns.number(
    text_columns.texts(columns.table['title'])[log.kept]
  )
  pairs, first, count = np.unique(
    items * len(distinct) + texts, return_index=True, return_counts=True
  )
  # Per item: a description before none, then the most frequent, then the first.
  none = distinct[pairs % len(distinct)] == ''
  order = np.lexsort((first, -count, none, pairs // len(distinct)))
  _, best = np.unique(pairs[order] // len(distinct), return_index=True)
  titles = distinct[pairs[order][best] % len(distinct)]
  empty = np.full(len(item_ids), '', object)
  return item_tables.Items(item_ids, titles, empty, empty, counts={})


def _first_lines(
  log: raw_log.Events, columns: columns_by_role.Columns
) -> np.ndarray:
  """The first event of every invoice, customer and item, i64[lines]."""
  invoices = text_columns.texts(columns.table['invoice'])[log.kept]
  key = text_columns.number(invoices).codes
  for column in (log.users, log.items):
    codes, distinct = text_columns.number(column)
    key = np.unique(key * len(distinct) + codes, return_inverse=True)[1]
  _, first = np.unique(key, return_index=True)
  return np.sort(first)
