"""Published files without a header, by name and first line.

MovieLens' files have no column names, and are read by their names and without
a flag. A file of the same name whose first line is another is not one of them.
"""

import gzip
import os
import re
from typing import NamedTuple

_RATINGS = ('user_id', 'item_id', 'rating', 'timestamp')


class Known(NamedTuple):
  """How a published file is read.

  Attributes:
    delimiter: between its columns.
    names: of its columns, as the defaults of `config.data` have them.
    first_line: a regular expression that its first line matches.
    items: the item table that is published with a log.
    encoding: of the text.
  """

  delimiter: str
  names: tuple[str, ...]
  first_line: str
  items: str = ''
  encoding: str = 'utf8'


_KNOWN = {
  # MovieLens 1M and 10M.
  'ratings.dat': Known(
    '::', _RATINGS, r'\d+::\d+::[\d.]+::\d+', items='movies.dat'
  ),
  'movies.dat': Known(
    '::', ('item_id', 'title', 'category'), r'\d+::.*::.*', encoding='latin1'
  ),
  # MovieLens 100K.
  'u.data': Known('\t', _RATINGS, r'\d+\t\d+\t\d\t\d+', items='u.item'),
  'u.item': Known(
    '|',
    ('item_id', 'title', 'release_date', 'video_release_date', 'imdb_url')
    + tuple(f'genre_{number}' for number in range(19)),
    r'\d+\|[^|]*\|[^|]*\|[^|]*\|[^|]*(\|[01]){19}',
    encoding='latin1',
  ),
}


def find(path: str) -> Known | None:
  """How a file is read that is known by name and first line, else None."""
  name = os.path.basename(path).lower().removesuffix('.gz')
  known = _KNOWN.get(name)
  if known is None:
    return None
  opener = gzip.open if path.lower().endswith('.gz') else open
  try:
    with opener(path, 'rb') as stream:
      line = stream.readline(1 << 16).decode('latin1').rstrip('\r\n')
  except (OSError, EOFError):  # Whoever reads the file says what is wrong.
    return None
  return known if re.fullmatch(known.first_line, line) else None


def items_beside(path: str) -> str:
  """The item table that is published with a log, where it lies beside it.

  RecBole's `NAME.inter` has `NAME.item`; MovieLens' logs have tables of their
  own.

  Args:
    path: of the log.

  Returns:
    The table's path, '' where there is none.
  """
  stem, suffix = os.path.splitext(path)
  if suffix == '.inter':
    table = f'{stem}.item'
  elif (known := find(path)) and known.items:
    table = os.path.join(os.path.dirname(path), known.items)
  else:
    return ''
  return table if os.path.isfile(table) else ''
