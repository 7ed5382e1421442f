"""Files that a configuration names, and how to read them."""

import dataclasses
import gzip
import io
import os

import ml_collections

from dynllm_jax import checks
from dynllm_jax.storage import bucket_copy
from dynllm_jax.types import InputError

_FORMATS = {
  '.csv': 'csv',
  '.tsv': 'csv',
  '.txt': 'csv',
  '.dat': 'csv',
  '.data': 'csv',
  '.parquet': 'parquet',
  '.pq': 'parquet',
  '.json': 'json',
  '.jsonl': 'json',
  '.ndjson': 'json',
  '.xlsx': 'xlsx',
}
QUOTING = ('auto', 'double', 'none')


@dataclasses.dataclass(frozen=True)
class File:
  """A file and how to read it.

  Attributes:
    path: where it is.
    field: the config field that named it, for messages.
    header: whether a text file starts with column names.
    delimiter: between the columns of a text file; '' looks at its first line.
    quoting: whether double quotes enclose values of a text file: 'double',
      'none', or 'auto' for 'double', which must not span lines where tabs
      separate the columns.
    skip_malformed: leave out (and count) lines that are no row.
    encodings: of a text file, tried in order.
  """

  path: str
  field: str = 'config.data.events'
  header: bool = True
  delimiter: str = ''
  quoting: str = 'auto'
  skip_malformed: bool = False
  encodings: tuple[str, ...] = ('utf8',)

  @classmethod
  def of(cls, data_config: ml_collections.ConfigDict, field: str) -> 'File':
    """The file that a field of `config.data` names, checked to be there.

    Args:
      data_config: `config.data`; `header`, `items_header`, `delimiter`,
        `quoting` and `bad_rows` say how to read it.
      field: its name, such as 'events' or 'items'.

    Raises:
      InputError: if the file is missing or empty, or how to read it is not
        allowed.
    """
    path = check_file(f'config.data.{field}', data_config[field])

    delimiter = data_config.delimiter.replace('\\t', '\t')
    if len(delimiter) > 1 or not delimiter.isascii():
      raise checks.not_allowed(
        'config.data.delimiter',
        delimiter,
        "a single ASCII character, or '' to choose by the file's first line",
      )
    checks.check(
      'config.data', data_config, [checks.one_of('quoting', QUOTING)]
    )

    header = data_config.header
    if field == 'items' and data_config.items_header is not None:
      header = data_config.items_header
    return cls(
      path,
      f'config.data.{field}',
      header=header,
      delimiter=delimiter,
      quoting=data_config.quoting,
      skip_malformed=data_config.bad_rows == 'drop',
    )

  @property
  def kind(self) -> str:
    """csv, parquet, json or xlsx, by the name.

    Raises:
      InputError: for any other name.
    """
    name = os.path.basename(self.path).lower().removesuffix('.gz')
    suffix = os.path.splitext(name)[1]
    if suffix not in _FORMATS:
      raise InputError(
        f'{self.field}: {self.path} has an unknown format {suffix!r}; '
        f'allowed: {", ".join(_FORMATS)}, text files also with .gz'
      )
    return _FORMATS[suffix]

  def error(self, what: str) -> InputError:
    """An error about this file, on one line."""
    return InputError(f'{self.field}: {self.path}: {" ".join(what.split())}')


def check_file(field: str, path: str) -> str:
  """The path of a readable, non-empty file; for one in a bucket, of its copy.

  Raises:
    InputError: naming `field` and the path, if it is anything else.
  """
  if not path:
    raise InputError(f'{field}: is empty; it must be the path of a file')
  if '://' in path:
    path = bucket_copy.fetch_file(field, path)
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    raise InputError(f'{field}: {path} is a directory; it must be a file')
  if not os.path.exists(path):
    raise InputError(f'{field}: {path} does not exist; it must be a file')
  if not os.access(path, os.R_OK):
    raise InputError(f'{field}: {path} cannot be read; check its permissions')
  if os.path.getsize(path) == 0:
    raise InputError(f'{field}: {path} is an empty file; it must hold rows')
  return path


def open_text(file: File, encoding: str) -> io.TextIOBase:
  """Opens a text file, gzipped or not, without its byte order mark."""
  opener = gzip.open if file.path.lower().endswith('.gz') else open
  encoding = 'utf-8-sig' if encoding == 'utf8' else encoding
  return opener(
    file.path,
    'rt',
    encoding=encoding,
    newline='',
    errors='replace' if len(file.encodings) > 1 else 'strict',
  )
