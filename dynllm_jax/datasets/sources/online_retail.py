"""UCI "Online Retail" (and "II"): the invoice lines of a giftware web shop."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.reading import values
from dynllm_jax.datasets.sources import event_log
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

files = event_log.files


def read(data_config: Any) -> RawLog:
  """Cleans the published invoice lines, or reads a log made of them before.

  Rules in order, each with its own count: the customer is known, the quantity
  is positive, the invoice is not cancelled (C...), the stock code starts with
  five digits (postage, fees and the like do not), and of the lines of one
  invoice, customer and item the first stands. An item's title is its most
  frequent description among the lines kept before the last rule, the first in
  the file of several. `where` applies before all rules. Invoice dates are
  naive, hence taken as UTC.

  Args:
    data_config: `config.data`. A file with the configured user, item and time
      columns is read by `event_log`; the columns of a raw file are known.

  Raises:
    InputError: as `event_log.read`, or if the rules leave nothing.
  """
  file = files(data_config)[0]
  file = dataclasses.replace(file, encodings=_ENCODINGS)
  there = file_formats.column_names(file)
  if {
    data_config.user_column,
    data_config.item_column,
    data_config.time_column,
  } <= set(there):
    return event_log.read(data_config)
  wanted = {
    role: next((name for name in names if name in there), names[0])
    for role, names in _COLUMNS.items()
  }
  columns = columns_by_role.read_columns(file, wanted, where=data_config.where)
  columns, counts = _clean(columns)
  log = raw_log.events(columns, data_config, _iso_dates(columns.table['time']))
  items = _titles(log, columns)
  log, repeated = _one_line_each(log, columns)
  counts |= log.counts
  counts['repeated lines of an invoice, customer and item dropped'] = repeated
  source = f'online_retail {raw_log.name(file.path)}'
  return raw_log.raw_log(log._replace(counts={}), items, counts, source)


def _clean(
  columns: columns_by_role.Columns,
) -> tuple[columns_by_role.Columns, dict[str, int]]:
  """Applies the rules that look at one line."""
  text = {
    role: values.texts(columns.table[role])
    for role in ('user', 'invoice', 'item')
  }
  quantity = values.as_text(columns.table['quantity']).cast(pa.string())
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
    values.as_text(table['user']).cast(pa.string()), r'\.0$', ''
  )
  table = table.set_column(table.column_names.index('user'), 'user', user)
  return columns_by_role.Columns(
    columns.file, table, columns.names, columns.rows[keep], counts
  ), counts


def _matches(text: np.ndarray, pattern: str) -> np.ndarray:
  found = pc.match_substring_regex(pa.array(text, pa.string()), pattern)
  return found.to_numpy(zero_copy_only=False)


def _iso_dates(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Turns dates such as 12/1/2010 8:26 into ISO 8601; leaves others alone."""
  if pa.types.is_timestamp(column.type):
    return column
  text = values.as_text(column).cast(pa.string())
  american = pc.strptime(text, '%m/%d/%Y %H:%M', 's', error_is_null=True)
  return pa.chunked_array(
    [pc.coalesce(pc.strftime(american, '%Y-%m-%dT%H:%M:%S'), text)]
  )


def _titles(
  log: raw_log.Events, columns: columns_by_role.Columns
) -> raw_log.Items:
  """Every item's most frequent description."""
  items, item_ids = raw_log.encode(log.items)
  texts, distinct = raw_log.encode(
    values.texts(columns.table['title'])[log.kept]
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
  return raw_log.Items(item_ids, titles, empty, empty, {})


def _one_line_each(
  log: raw_log.Events, columns: columns_by_role.Columns
) -> tuple[raw_log.Events, int]:
  """Keeps the first line of every invoice, customer and item."""
  invoices = values.texts(columns.table['invoice'])[log.kept]
  key = raw_log.encode(invoices)[0]
  for column in (log.users, log.items):
    codes, distinct = raw_log.encode(column)
    key = np.unique(key * len(distinct) + codes, return_inverse=True)[1]
  _, first = np.unique(key, return_index=True)
  first.sort()
  kept = raw_log.Events(
    log.users[first],
    log.items[first],
    log.times[first],
    log.kept[first],
    log.counts,
    log.unit,
  )
  return kept, len(key) - len(first)
