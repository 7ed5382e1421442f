"""`--mode=recommend`: recommendations to a file, or question by question.

A file has a row for each item of each user: `user`, `rank` (from 1), `item`,
`score`, `title`; JSON lines have one line a user. Users go through the device
in batches, and from there to Parquet or CSV as columns.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import datetime
import pathlib
import sys
from typing import Any
from typing import BinaryIO
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dynllm_jax import checks
from dynllm_jax.live.answers import TopItems
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.progress import Progress
from dynllm_jax.runs.command_line import Command
from dynllm_jax.serving import opening
from dynllm_jax.serving import questions
from dynllm_jax.storage.atomic import replacing
from dynllm_jax.types import InputError

MAX_LINE = 1 << 24  # bytes of a question
SCHEMA = pa.schema(
  [
    ('user', pa.string()),
    ('rank', pa.int32()),
    ('item', pa.string()),
    ('score', pa.float32()),
    ('title', pa.string()),
  ]
)


def run(command: Command) -> None:
  """Runs the mode.

  Args:
    command: the command line.

  Raises:
    InputError: for whatever is wrong with it, the run folder or the output.
  """
  if command.stream:
    if command.output:
      raise InputError(
        '--output is not for --stream, which answers on the standard output'
      )
    with opening.opened(command, writes=True) as recommender:
      stream(recommender, sys.stdin.buffer, sys.stdout)
    return

  time = None if command.time is None else parse_time(command.time)
  names = _named_users(command.users)
  write = _writer(command.output)
  with opening.opened(command, writes=False) as recommender:
    users = list(recommender.users) if names is None else names
    if unknown := sum(not recommender.has_user(user) for user in users):
      print(
        f'{unknown:,} of {len(users):,} users are not known; they are answered '
        'as new users are',
        file=sys.stderr,
      )
    found = recommender.top(
      users, command.k, time, exclude_seen=command.exclude_seen
    )
    write(recommender, _with_progress(found, len(users)))


# ------------------------------------------------------------ line by line


def stream(recommender: Recommender, lines: BinaryIO, answers: IO[str]) -> None:
  """Answers questions, a line each, in order.

  A line that is no question, or that is refused, is answered by an object with
  `error` and `line`, its number from 1; nothing is changed by it. Empty lines
  are passed over.

  Args:
    recommender: the model.
    lines: where questions are read from, UTF-8.
    answers: where answers go; flushed after each.
  """
  number = 0
  while line := lines.readline(MAX_LINE + 1):
    number += 1
    is_long = len(line) > MAX_LINE
    while is_long and line and not line.endswith(b'\n'):  # its end
      line = lines.readline(MAX_LINE)
    if not is_long and not line.strip():
      continue

    try:
      if is_long:
        raise InputError(f'it is too long; allowed: {MAX_LINE} bytes')
      found = questions.answer(recommender, questions.parse(line))
    except InputError as error:
      found = {'error': ' '.join(str(error).split()), 'line': number}
    answers.write(questions.as_text(found) + '\n')
    answers.flush()


# ------------------------------------------------------------- for all users


def parse_time(value: str) -> float | datetime.datetime:
  """A time of the command line.

  Args:
    value: unix seconds, or a date with or without a time of day, as ISO 8601
      has it; without a time zone it is in UTC.

  Raises:
    InputError: if it is neither.
  """
  with contextlib.suppress(ValueError):
    return float(value)
  try:
    return datetime.datetime.fromisoformat(value)
  except ValueError as error:
    raise checks.not_allowed(
      '--time', value, 'unix seconds, or a date as 2026-01-31T18:00'
    ) from error


def _named_users(value: str) -> list[str] | None:
  """The users that a command line names; None for all."""
  if value == 'all':
    return None
  if value.startswith('@'):
    try:
      text = pathlib.Path(value[1:]).read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
      raise InputError(
        f'--users: {value[1:]!r} cannot be read ({error}); allowed: a text '
        'file with an id a line'
      ) from error
    names = text.splitlines()
  else:
    names = value.split(',')
  names = [name.strip() for name in names if name.strip()]
  if not names:
    raise checks.not_allowed(
      '--users', value, 'all, ids with commas between them, or @FILE'
    )
  return names


def _with_progress(found: Iterable[TopItems], total: int) -> Iterator[TopItems]:
  progress = Progress('recommending', total, 'user')
  for top in found:
    progress(len(top.users))
    yield top
  progress.close()


_Write = Callable[[Recommender, Iterable[TopItems]], None]


def _writer(output: str | None) -> _Write:
  """What writes recommendations to a file, or to the standard output."""
  if output is None:
    return _print_table if sys.stdout.isatty() else _print_lines
  path = pathlib.Path(output)
  writers = {'.parquet': _parquet, '.jsonl': _json_lines, '.csv': _csv}
  if path.suffix not in writers or path.is_dir():
    raise checks.not_allowed(
      '--output', output, f'a file that ends in {", ".join(writers)}'
    )

  def write(recommender: Recommender, found: Iterable[TopItems]) -> None:
    try:
      with replacing(path) as file:
        writers[path.suffix](recommender, found, file)
    except OSError as error:
      raise InputError(
        f'--output: {output!r} cannot be written ({error}); allowed: a file in '
        'a folder that can be, on a disk with room'
      ) from error
    print(f'wrote {path}')

  return write


def tables(
  recommender: Recommender, found: Iterable[TopItems]
) -> Iterator[pa.Table]:
  """Recommendations as columns, a table a batch of users.

  Args:
    recommender: the model.
    found: of its `top`.

  Yields:
    Tables of `SCHEMA`.
  """
  items, titles = (
    pa.array(column, pa.string())
    for column in (recommender.items, recommender.titles)
  )
  for top in found:
    there = np.isfinite(top.scores)
    user, rank = np.nonzero(there)
    rows = pa.array(top.items[there] - 1)
    columns = [
      pa.array(top.users, pa.string()).take(pa.array(user)),
      pa.array((rank + 1).astype(np.int32)),
      items.take(rows),
      pa.array(top.scores[there]),
      titles.take(rows),
    ]
    yield pa.Table.from_arrays(columns, schema=SCHEMA)


def lines(
  recommender: Recommender, found: Iterable[TopItems]
) -> Iterator[dict[str, Any]]:
  """Recommendations as JSON values, an object a user."""
  items, titles = recommender.items, recommender.titles
  for top in found:
    for user, rows, scores in zip(
      top.users, top.items.tolist(), top.scores.tolist()
    ):
      rows = rows[: sum(map(np.isfinite, scores))]
      yield {
        'user': user,
        'items': [items[row - 1] for row in rows],
        'scores': scores[: len(rows)],
        'titles': [titles[row - 1] for row in rows],
      }


def _parquet(
  recommender: Recommender, found: Iterable[TopItems], file: IO[bytes]
) -> None:
  with pq.ParquetWriter(file, SCHEMA, compression='zstd') as writer:
    for table in tables(recommender, found):
      writer.write_table(table)


def _csv(
  recommender: Recommender, found: Iterable[TopItems], file: IO[bytes]
) -> None:
  with pa_csv.CSVWriter(file, SCHEMA) as writer:
    for table in tables(recommender, found):
      writer.write_table(table)


def _json_lines(
  recommender: Recommender, found: Iterable[TopItems], file: IO[bytes]
) -> None:
  for line in lines(recommender, found):
    file.write(questions.as_text(line).encode() + b'\n')


def _print_lines(recommender: Recommender, found: Iterable[TopItems]) -> None:
  for line in lines(recommender, found):
    print(questions.as_text(line))


def _print_table(recommender: Recommender, found: Iterable[TopItems]) -> None:
  width = max(4, *map(len, recommender.items[:1000]), 0)
  for line in lines(recommender, found):
    print(line['user'])
    rows: Sequence[tuple[str, float, str]] = list(
      zip(line['items'], line['scores'], line['titles'])
    )
    for rank, (item, score, title) in enumerate(rows, start=1):
      print(f'  {rank:>3}  {item:<{width}}  {score:>9.4f}  {title}')
