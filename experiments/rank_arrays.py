"""The rank of every test event of a row: kept beside the row, not in git.

    experiments/results/rows/<experiment>/<log>/<system>-<key>.npz

Significance needs the ranks of single events. They are large and can be made
again, so a clone does not have them: a row's .json has their check sums, and
`python -m experiments.verify` trains and tests the row again, compares, and
puts the arrays back.

On another machine some scores are rounded differently, so that a few ranks
change (of `mf` on online_retail 12 of 55,604, by one place at most) while the
figures stay the same to many digits. Such arrays are `close` to those of the
row, and a page that uses them says so.
"""

import hashlib
import pathlib
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

from dynllm_jax.engine import significance
from dynllm_jax.runs import run_folder
from dynllm_jax.types import InputError

# A rank is stored doubled, since ties have halves; the largest number stands
# for every rank from there on.
_LARGEST = 65_535
_TOLERANCE = 5e-5  # of a figure, of which pages show four places


class RankArrays(NamedTuple):
  """What a row keeps of every test event, in the order of the log."""

  doubled_ranks: np.ndarray  # u16[test events]
  users: np.ndarray  # i32[test events]

  @property
  def ranks(self) -> np.ndarray:
    """f64[test events], from 1."""
    return self.doubled_ranks.astype(np.float64) / 2

  def check_sums(self) -> dict[str, str]:
    """SHA-256 of the bytes of each array, little-endian, by its name.

    The arrays are hashed and not the file, whose bytes depend on the
    compressor.
    """
    return {
      name: hashlib.sha256(
        array.astype(array.dtype.newbyteorder('<')).tobytes()
      ).hexdigest()
      for name, array in self._asdict().items()
    }


def agreement(
  arrays: RankArrays, row: dict[str, Any]
) -> Literal['same', 'close', 'different']:
  """Whether arrays are those that a row was made with.

  Args:
    arrays: the arrays.
    row: the content of the row's .json.

  Returns:
    'same' if the check sums are those of the row; 'close' if the users are the
    same, and the figures to four places; 'different' otherwise.
  """
  sums, stored = arrays.check_sums(), row['arrays_sha256']
  if sums == stored:
    return 'same'
  close = sums['users'] == stored['users'] and all(
    abs(significance.gains(arrays.ranks, metric).mean() - row['test'][metric])
    < _TOLERANCE
    for metric in ('recall@10', 'ndcg@10', 'mrr')
  )
  return 'close' if close else 'different'


def of_run(folder: pathlib.Path) -> RankArrays:
  """The arrays of a finished run of `dynllm_jax.main`, from its run folder."""
  with np.load(folder / 'ranks.npz') as stored:
    return RankArrays(
      doubled(stored['test']), stored['test_users'].astype(np.int32)
    )


def doubled(ranks: np.ndarray) -> np.ndarray:
  """f[events] ranks as they are kept, u16[events]."""
  return np.minimum(ranks * 2, _LARGEST).astype(np.uint16)


def write(folder: pathlib.Path, key: str, arrays: RankArrays) -> None:
  """Keeps a row's arrays beside its .json.

  Args:
    folder: of the log's rows.
    key: of the row.
    arrays: of its run.
  """
  run_folder.RunFolder(str(folder)).write_arrays(f'{key}.npz', arrays._asdict())


def read(folder: pathlib.Path, row: dict[str, Any]) -> RankArrays | None:
  """The arrays of a row, None where they are not on this machine.

  Args:
    folder: of the log's rows.
    row: the content of the row's .json.

  Raises:
    InputError: if the arrays are different from those of the row.
  """
  path = folder / f'{row["key"]}.npz'
  if not path.exists():
    return None
  with np.load(path) as stored:
    arrays = RankArrays(**stored)

  if agreement(arrays, row) == 'different':
    raise InputError(
      f'{path}: the ranks are not those of {row["key"]}.json, whose check sums '
      'and figures differ; allowed: to remove the file, and to make it again '
      'with experiments.verify'
    )
  return arrays
