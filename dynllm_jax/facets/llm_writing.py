"""What the writers that ask a language model share (SPEC 3.6, 8).

Every distinct prompt is asked once, and every call's answer is kept in a
store as soon as it is there, the ones that cannot be read too: a run that was
killed goes on with the calls that it had not finished.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

from dynllm_jax.facets import language_model
from dynllm_jax.facets.prompts import MalformedError
from dynllm_jax.facets.prompts import parse
from dynllm_jax.facets.prompts import Prompts
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writing import collect
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.progress import Progress
from dynllm_jax.storage import fill_lock
from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

# Rounds double from the first, so that a model that cannot do it is found out
# early, and end here, so that their messages fit in memory.
_FIRST_ROUND, _LARGEST_ROUND = 64, 8192
# A greedy model would give a malformed answer again.
_RETRY_TEMPERATURE = 0.7
_RATE = 'rate.json'

Report = Callable[[str], None]


@dataclasses.dataclass
class Work:
  """The distinct prompts of a log and how far each of them is.

  Attributes:
    prompts: of all profiles.
    rows: i64[distinct], a profile that asks each prompt.
    inverse: i64[profiles], the prompt of each profile.
    texts: the four texts of each prompt, None where there are none yet.
    attempts: answers so far that could not be read.
    reason: why the last such answer could not.
  """

  prompts: Prompts
  rows: np.ndarray
  inverse: np.ndarray
  texts: list[tuple[str, ...] | None]
  attempts: list[int]
  reason: str = ''

  def unfinished(self, max_attempts: int) -> list[int]:
    """Prompts to ask, by digest: an order that says nothing of length."""
    return [i for i in range(len(self.texts)) if self.is_open(i, max_attempts)]

  def is_open(self, prompt: int, max_attempts: int) -> bool:
    """Whether a prompt is to be asked, for the first time or again."""
    return self.texts[prompt] is None and self.attempts[prompt] < max_attempts

  def take(self, prompt: int, answer: str) -> bool:
    """Reads an answer; whether that could be done."""
    try:
      self.texts[prompt] = parse(answer)
      return True
    except MalformedError as error:
      self.attempts[prompt] += 1
      self.reason = f'{str(error)[:200]}: {answer[:80]!r}'
      return False


def write(
  writer_config: Any,
  model: language_model.Model,
  log: EventLog,
  profiles: Profiles,
  folder: str = '',
  report: Report = print,
) -> FacetTexts:
  """Asks for what the store does not hold yet, and collects all texts.

  Args:
    writer_config: `config.facets.writer`.
    model: who is asked.
    log: the prepared log.
    profiles: the users and windows to write for.
    folder: where stores of answers are kept, '' for none.
    report: takes lines of progress.

  Raises:
    InputError: if more than `max_failure_rate` of the prompts fail, or what
      the model raises. What was answered is kept.
  """
  with contextlib.ExitStack() as stack:
    if not folder:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    store = open_store(model, folder)
    work = survey(writer_config, model, log, profiles, store)
    report(describe_work(writer_config, work))
    if work.unfinished(writer_config.max_attempts):
      stack.enter_context(fill_lock.hold(store, report))
      _recall(store, work, writer_config.max_attempts)
      _ask(writer_config, model, store, work)
  finished = [texts is not None for texts in work.texts]
  _check_failures(
    writer_config, work, finished.count(False), len(finished), store, True
  )
  rows = (work.texts[i] or ('',) * 4 for i in work.inverse)
  failed = np.bincount(work.inverse, minlength=len(finished))[
    np.flatnonzero(~np.array(finished, bool))
  ]
  return collect(rows, work.prompts.num_read, int(failed.sum()))


def store_folder(model: language_model.Model, folder: str) -> pathlib.Path:
  """Where a model's answers are; what writes others has another place."""
  name = re.sub(r'[^\w.-]+', '-', pathlib.Path(model.about['model']).name)
  return pathlib.Path(
    folder,
    '-'.join((model.about['name'], name[:40], digest(model.about).hex()[:12])),
  )


def open_store(model: language_model.Model, folder: str) -> Store:
  """The store of a model's answers."""
  return Store(store_folder(model, folder), model.about)


def survey(
  writer_config: Any,
  model: language_model.Model,
  log: EventLog,
  profiles: Profiles,
  store: Store,
) -> Work:
  """Makes the prompts and looks up which have been answered."""
  prompts = Prompts(
    log, profiles, writer_config.max_input_tokens, model.counter
  )
  distinct = sorted(set(prompts.keys))
  place = {key: i for i, key in enumerate(distinct)}
  inverse = np.array([place[key] for key in prompts.keys], np.int64)
  rows = np.zeros(len(distinct), np.int64)
  rows[inverse] = np.arange(len(inverse))
  work = Work(prompts, rows, inverse, [None] * len(rows), [0] * len(rows))
  _recall(store, work, writer_config.max_attempts)
  return work


def describe_work(writer_config: Any, work: Work) -> str:
  """A line: how many prompts there are, and how many are left to ask."""
  left = len(work.unfinished(writer_config.max_attempts))
  return (
    f'facets: {len(work.prompts):,} profiles, {len(work.rows):,} '
    f'distinct prompts, {len(work.rows) - left:,} of them finished'
  )


def measured_rate(store: Store) -> float:
  """Tokens per second, in and out, as last measured; 0 if that is unknown."""
  try:
    return float(json.loads((store.folder / _RATE).read_text())['tokens_per_s'])
  except (OSError, ValueError, KeyError, TypeError):  # damaged: only a guess
    return 0.0


def _recall(store: Store, work: Work, max_attempts: int) -> None:
  """Takes from the store what it holds beyond what `work` knows."""
  pending = work.unfinished(max_attempts)
  while pending:
    rows = store.find(
      [_call_key(work, prompt, work.attempts[prompt]) for prompt in pending]
    )
    pending = [
      prompt
      for prompt, row in zip(pending, rows)
      if row >= 0
      and not work.take(prompt, json.loads(store.read(row))['answer'])
      and work.attempts[prompt] < max_attempts
    ]


def _call_key(work: Work, prompt: int, attempt: int) -> bytes:
  return digest(work.prompts.keys[work.rows[prompt]].hex(), attempt)


def _ask(
  writer_config: Any, model: language_model.Model, store: Store, work: Work
) -> None:
  """Asks all that is unfinished, in rounds."""
  todo = work.unfinished(writer_config.max_attempts)
  finished = len(work.rows) - len(todo)
  progress = Progress('writing facets', len(todo), 'prompt')
  size, tokens = _FIRST_ROUND, 0
  try:
    while todo:
      asked, todo = todo[:size], todo[size:]
      size = min(2 * size, _LARGEST_ROUND)
      finished += len(asked)
      while asked:
        requests = [_request(writer_config, work, i) for i in asked]
        for group in model.answer(requests):
          _keep(store, work, group)
          tokens += sum(r.input_tokens + r.output_tokens for _, r in group)
          if done := sum(
            not work.is_open(request.prompt, writer_config.max_attempts)
            for request, _ in group
          ):
            progress(done)
        asked = [
          i for i in asked if work.is_open(i, writer_config.max_attempts)
        ]
      failed = sum(
        attempts == writer_config.max_attempts for attempts in work.attempts
      )
      _check_failures(writer_config, work, failed, finished, store, False)
  finally:
    seconds = progress.close()
    if tokens:
      _write(
        store.folder / _RATE, json.dumps({'tokens_per_s': tokens / seconds})
      )


def _request(
  writer_config: Any, work: Work, prompt: int
) -> language_model.Request:
  row, attempt = work.rows[prompt], work.attempts[prompt]
  key = digest(writer_config.seed, work.prompts.keys[row].hex(), attempt)
  temperature = float(writer_config.temperature)
  return language_model.Request(
    prompt,
    work.prompts.message(row),
    int(work.prompts.tokens[row]),
    max(temperature, _RETRY_TEMPERATURE) if attempt else temperature,
    int.from_bytes(key[:8], 'little') >> 1,
  )


def _keep(
  store: Store,
  work: Work,
  group: list[tuple[language_model.Request, language_model.Reply]],
) -> None:
  """Stores answers, then reads them."""
  keys, payloads = [], []
  for request, reply in group:
    prompt = request.prompt
    keys.append(_call_key(work, prompt, work.attempts[prompt]))
    payloads.append(
      json.dumps(
        {
          'answer': reply.text,
          'input_tokens': reply.input_tokens,
          'output_tokens': reply.output_tokens,
        }
      ).encode()
    )
  store.append(keys, payloads)
  for request, reply in group:
    work.take(request.prompt, reply.text)


def _check_failures(
  writer_config: Any,
  work: Work,
  failed: int,
  finished: int,
  store: Store,
  last: bool,
) -> None:
  """Stops where too many prompts have failed.

  Before the end, only if that is no accident of the prompts asked so far:
  three standard deviations above the limit.
  """
  limit = writer_config.max_failure_rate * finished
  if failed <= limit + (0 if last else 3 * math.sqrt(limit)):
    return
  raise InputError(
    f'config.facets.writer.max_failure_rate: {failed:,} of {finished:,} '
    f'prompts ({failed / finished:.1%}) have failed, each in '
    f'{writer_config.max_attempts} attempts; the limit is '
    f'{writer_config.max_failure_rate:.1%}. The last malformed answer: '
    f'{work.reason}. Another model, more max_output_tokens or max_attempts, '
    f'or a higher limit may help; all answers are kept in {store.folder}'
  )


def _write(path: pathlib.Path, text: str) -> None:
  fresh = path.with_suffix(f'.{os.getpid()}')
  fresh.write_text(text)
  os.replace(fresh, path)
