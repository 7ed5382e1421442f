"""Files that a configuration names, and how to read them."""

import codecs
import dataclasses
import glob
import gzip
import io
import os
import re
from typing import Any

import ml_collections

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.datasets.reading import known_files
from dynllm_jax.storage import bucket_copy
from dynllm_jax.types import InputError

_FORMATS = {
  '.csv': 'csv',
  '.tsv': 'csv',
  '.txt': 'csv',
  '.dat': 'csv',
  '.data': 'csv',
  '.inter': 'csv',  # RecBole's log and item table
  '.item': 'csv',
  '.parquet': 'parquet',
  '.pq': 'parquet',
  '.feather': 'feather',
  '.arrow': 'feather',
  '.ipc': 'feather',
  '.json': 'json',
  '.jsonl': 'json',
  '.ndjson': 'json',
  '.xlsx': 'xlsx',
}
QUOTING = ('auto', 'double', 'backslash', 'none')
# How a field says that there is no file, where one beside the log would be read
# otherwise.
NO_FILE = 'none'


def _is_encoding(name: Any) -> bool:
  try:
    return bool(codecs.lookup(name))
  except (LookupError, TypeError, ValueError):
    return False


RULES = (
  checks.one_of('quoting', QUOTING),
  Rule(
    'delimiter',
    "ASCII characters, as ';' or '::', or '' to choose by the file's first "
    'line',
    lambda text: text.isascii() and not set(text) & set('"\n\r'),
  ),
  Rule('encoding', "a Python encoding, as 'utf8' or 'latin1'", _is_encoding),
)


@dataclasses.dataclass(frozen=True)
class File:
  """A file and how to read it.

  Attributes:
    path: where it is.
    field: the config field that named it, for messages.
    header: whether a text file or a workbook starts with column names.
    delimiter: between the columns of a text file; '' looks at its first line.
    quoting: whether double quotes enclose values of a text file: 'double',
      where one of a value is written twice; 'backslash', where one stands
      behind a backslash; 'none'; or 'auto' for 'double' with values that span
      lines refused where they look like rows.
    skip_malformed: leave out (and count) lines that are no row, and put the
      replacement character for what is not of the encoding.
    encodings: of a text file, tried in order.
    names: of the columns of a published file without a header.
    folders: (name, value) of each folder `name=value` on the way to the file,
      which are columns as well.
    first_rows: how many rows are read at most, 0 for all.
  """

  path: str
  field: str = 'config.data.events'
  header: bool = True
  delimiter: str = ''
  quoting: str = 'auto'
  skip_malformed: bool = False
  encodings: tuple[str, ...] = ('utf8',)
  names: tuple[str, ...] = ()
  folders: tuple[tuple[str, str], ...] = ()
  first_rows: int = 0

  @classmethod
  def of(cls, data_config: ml_collections.ConfigDict, field: str) -> 'File':
    """The one file that a field of `config.data` names, checked to be there.

    Args:
      data_config: `config.data`; `header`, `items_header`, `delimiter`,
        `encoding`, `quoting` and `bad_rows` say how to read it.
      field: its name, such as 'events' or 'items'.

    Raises:
      InputError: if the file is missing or empty, or how to read it is not
        allowed.
    """
    path = check_file(f'config.data.{field}', data_config[field])
    return cls._read_as_configured(path, data_config, field)

  @classmethod
  def all_of(
    cls,
    data_config: ml_collections.ConfigDict,
    field: str,
    place: str | None = None,
  ) -> list['File']:
    """The files that a field names: one, those of a pattern or of a folder.

    Args:
      data_config: as in `of`.
      field: its name, such as 'events' or 'items'.
      place: where the files are, in place of the field's value.

    Returns:
      The files in order of their names; empty ones among several are left out.

    Raises:
      InputError: as `of`; also if a folder has no such files, or of several
        formats.
    """
    place = data_config[field] if place is None else place
    found = _expand(f'config.data.{field}', place)
    files = [
      cls._read_as_configured(path, data_config, field) for path in found
    ]
    kinds = sorted({file.kind for file in files})
    if len(kinds) > 1:
      raise InputError(
        f'config.data.{field}: {place} has files of several formats '
        f'({", ".join(kinds)}); allowed: files of one format'
      )
    root = os.path.abspath(os.path.expanduser(place))
    return [
      dataclasses.replace(file, folders=_folders(root, file.path))
      for file in files
    ]

  @classmethod
  def _read_as_configured(
    cls, path: str, data_config: ml_collections.ConfigDict, field: str
  ) -> 'File':
    """The file at a path, to be read as `config.data` says."""
    checks.check('config.data', data_config, RULES)
    header = data_config.header
    if field == 'items' and data_config.items_header is not None:
      header = data_config.items_header
    delimiter = data_config.delimiter.replace('\\t', '\t')
    encoding = data_config.encoding
    known = None if delimiter else known_files.find(path)
    if known:
      delimiter, header = known.delimiter, False
      encoding = known.encoding if encoding == 'utf8' else encoding

    return cls(
      path,
      f'config.data.{field}',
      header=header,
      delimiter=delimiter,
      quoting='none' if len(delimiter) > 1 else data_config.quoting,
      skip_malformed=data_config.bad_rows == 'drop',
      encodings=(encoding,),
      names=known.names if known else (),
    )

  @property
  def kind(self) -> str:
    """csv, parquet, feather, json or xlsx, by the name.

    Raises:
      InputError: for any other name.
    """
    suffix = _suffix(self.path)
    if suffix not in _FORMATS:
      raise InputError(
        f'{self.field}: {self.path} has an unknown format {suffix!r}; '
        f'allowed: {", ".join(_FORMATS)}, text files also with .gz'
      )
    return _FORMATS[suffix]

  @property
  def has_header(self) -> bool:
    """Whether the first row, of a format that may have none, has the names."""
    return self.header or self.kind not in ('csv', 'xlsx')

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
  encoding = 'utf-8-sig' if is_utf8(encoding) else encoding
  return opener(
    file.path,
    'rt',
    encoding=encoding,
    newline='',
    errors='strict' if is_strict(file) else 'replace',
  )


def is_strict(file: File) -> bool:
  """Whether what is not of a text file's encoding is an error."""
  return len(file.encodings) == 1 and not file.skip_malformed


def is_utf8(encoding: str) -> bool:
  """Whether an encoding is UTF-8, however it is spelled."""
  return codecs.lookup(encoding).name in ('utf-8', 'utf-8-sig')


def _suffix(path: str) -> str:
  """The last suffix of a file's name, in lower case, `.gz` left out."""
  name = os.path.basename(path).lower().removesuffix('.gz')
  return os.path.splitext(name)[1]


def _expand(field: str, place: str) -> list[str]:
  """The files at a place: a path, a folder or a pattern."""
  path = os.path.expanduser(place)
  if os.path.isdir(path):
    found = _inside(path)
    if not found:
      raise InputError(
        f'{field}: {path} is a directory without files to read; allowed: a '
        f'file, or a folder of files {", ".join(_FORMATS)}'
      )
  elif os.path.exists(path) or '://' in path or not glob.has_magic(path):
    return [check_file(field, place)]
  else:
    found = sorted(
      name
      for name in glob.glob(_pattern(path), recursive=True)
      if os.path.isfile(name)
    )
    if not found:
      raise InputError(
        f'{field}: {path} does not exist, and as a pattern it matches no file; '
        'it must be a file, a folder of files, or match some'
      )

  # What writes files in parts leaves some of them empty.
  return [
    check_file(field, name) for name in found if os.path.getsize(name)
  ] or [check_file(field, found[0])]


def _inside(folder: str) -> list[str]:
  """Files with rows in a folder and those below it, in order of their names.

  Of a folder with RecBole's files, which has one of each kind, the logs. Names
  that begin with a dot or an underscore are those of marks and checksums.
  """
  found = []
  for above, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if name[0] not in '._']
    found += [
      os.path.join(above, name)
      for name in names
      if name[0] not in '._' and _suffix(name) in _FORMATS
    ]
  logs = [name for name in found if _suffix(name) == '.inter']
  return sorted(logs or found)


def _pattern(path: str) -> str:
  """A pattern in which the folders that exist under their name stand for it.

  A folder may be called `[lr=0.1]`.
  """
  parts = path.split(os.sep)
  for count in range(len(parts) - 1, 0, -1):
    start = os.sep.join(parts[:count])
    if start and os.path.isdir(start):
      return os.sep.join([glob.escape(start), *parts[count:]])
  return path


def _folders(root: str, path: str) -> tuple[tuple[str, str], ...]:
  """(name, value) of folders `name=value` between a place and a file in it."""
  below = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(root) or below == root:
    return ()
  parts = os.path.relpath(below, root).split(os.sep)
  pairs = [re.fullmatch(r'([^=]+)=(.*)', part) for part in parts]
  return tuple((pair[1], pair[2]) for pair in pairs if pair)
