"""Tables of a program (pandas, polars, Arrow) as files that a source reads.

A table becomes a Parquet file named by its content, below `data.dir`. So it is
read as any log is, and the same table is the same log in a later process.
"""

from collections.abc import Mapping
from collections.abc import Set
import hashlib
import pathlib
from typing import Any

import ml_collections
import pyarrow as pa
import pyarrow.parquet

from dynllm_jax.datasets import loading
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError


def with_tables(
  config: ml_collections.ConfigDict, **tables: Any
) -> ml_collections.ConfigDict:
  """A configuration whose log is made of tables.

  Args:
    config: the whole configuration; it stays as it is.
    **tables: by field of `config.data`, `events` and `items`: anything that
      pyarrow reads as a table, such as a data frame of pandas or polars; None
      leaves the field.

  Returns:
    The configuration that names the tables' files.

  Raises:
    InputError: if a table is none, or cannot be stored.
  """
  given = {name: table for name, table in tables.items() if table is not None}
  if not given:
    return config
  config = config.copy_and_resolve_references()
  folder = loading.data_folder(config.data) / 'tables'
  with config.unlocked():
    for name, table in given.items():
      config.data[name] = str(_store(name, table, folder))
  return config


def _store(name: str, table: Any, folder: pathlib.Path) -> pathlib.Path:
  """Writes a table, unless it is there; its file."""
  try:
    if isinstance(table, Mapping) and any(
      isinstance(column, (Mapping, Set)) for column in table.values()
    ):
      # Arrow would take the keys, such as the index of a data frame.
      raise TypeError('a column is a dictionary or a set')
    # Data frames export themselves as streams of Arrow.
    arrow = table if isinstance(table, pa.Table) else pa.table(table)
    content = pa.BufferOutputStream()
    pa.parquet.write_table(arrow.replace_schema_metadata(None), content)
  except (pa.ArrowException, TypeError, ValueError) as error:
    raise InputError(
      f'{name}: a {type(table).__name__} cannot be read as a table '
      f'({" ".join(str(error).split())}); allowed: tables of pandas, polars '
      '(collected) or Arrow, each column of one type; config.data.'
      f'{name} names files'
    ) from error

  data = content.getvalue()
  digest = hashlib.sha256(data).hexdigest()[:16]
  path = folder / f'{name}-{digest}.parquet'
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_atomically(path, data.to_pybytes())
  return path
