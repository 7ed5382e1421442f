"""What the writers that ask a language model share (SPEC 3.6, 8).

Every distinct prompt is asked once. Every call's answer, even one that cannot
be read, is kept in a store as soon as it comes: a run that was killed goes on
with the calls that it had not finished.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import math
import pathlib
import re
import tempfile

import ml_collections
import numpy as np

from dynllm_jax.facets import language_model
from dynllm_jax.facets.prompts import MalformedError
from dynllm_jax.facets.prompts import Prompts
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writing import collect
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.progress import Progress
from dynllm_jax.storage import fill_lock
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

# Prompts of the first round, and of a round at most. Rounds double, so that a
# model that cannot do the task is found out early, up to a largest one, so that
# their messages fit in memory.
_FIRST_ROUND, _LARGEST_ROUND = 64, 8192
# A greedy model would give a malformed answer again.
_RETRY_TEMPERATURE = 0.7
_RATE = 'rate.json'

Report = Callable[[str], None]


@dataclasses.dataclass
class Work:
  """The distinct prompts of a log and how far each of them is.

  Attributes:
    prompts: the prompts of all profiles.
    rows: i64[distinct], one of the profiles that ask each prompt.
    inverse: i64[profiles], the prompt of each profile.
    texts: the four texts of each prompt, None where there are none yet.
    attempts: how many answers of each prompt could not be read so far.
    parse: reads an answer.
    reason: why the last such answer could not be read.
  """

  prompts: Prompts
  rows: np.ndarray
  inverse: np.ndarray
  texts: list[tuple[str, ...] | None]
  attempts: list[int]
  parse: Callable[[str], tuple[str, ...]]
  reason: str = ''

  def unfinished(self, max_attempts: int) -> list[int]:
    """Prompts to ask, in the order of their digests.

    That order has nothing to do with their lengths, so that the first rounds
    are a fair sample.
    """
    return [i for i in range(len(self.texts)) if self.is_open(i, max_attempts)]

  def is_open(self, prompt: int, max_attempts: int) -> bool:
    """Whether a prompt is to be asked, for the first time or again."""
    return self.texts[prompt] is None and self.attempts[prompt] < max_attempts

  def read_answer(self, prompt: int, answer: str) -> bool:
    """Reads an answer into `texts`, or counts it as a failed attempt.

    Returns:
      Whether it could be read.
    """
    try:
      self.texts[prompt] = self.parse(answer)
      return True
    except MalformedError as error:
      self.attempts[prompt] += 1
      self.reason = f'{str(error)[:200]}: {answer[:80]!r}'
      return False


def write(
  writer_config: ml_collections.ConfigDict,
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
      if speed := model.speed():
        report(f'facets: {speed}')

  failed = np.array([texts is None for texts in work.texts], bool)
  _check_failures(
    writer_config,
    work,
    store,
    failed=int(failed.sum()),
    finished=len(failed),
  )
  rows = (work.texts[i] or ('',) * 4 for i in work.inverse)
  num_failed = int(failed[work.inverse].sum())
  return collect(rows, work.prompts.num_read, num_failed)


def store_folder(model: language_model.Model, folder: str) -> pathlib.Path:
  """The folder of a model's answers.

  Models that may answer a prompt differently have different folders.
  """
  name = re.sub(r'[^\w.-]+', '-', pathlib.Path(model.about['model']).name)
  return pathlib.Path(
    folder,
    '-'.join((model.about['name'], name[:40], digest(model.about).hex()[:12])),
  )


def open_store(model: language_model.Model, folder: str) -> Store:
  """The store of a model's answers."""
  return Store(store_folder(model, folder), model.about)


def survey(
  writer_config: ml_collections.ConfigDict,
  model: language_model.Model,
  log: EventLog,
  profiles: Profiles,
  store: Store,
) -> Work:
  """Makes the prompts and looks up which have been answered."""
  wording = language_model.wording(writer_config)
  prompts = wording.Prompts(
    log, profiles, writer_config.max_input_tokens, model.counter
  )
  distinct = sorted(set(prompts.keys))
  numbers = {key: i for i, key in enumerate(distinct)}
  inverse = np.array([numbers[key] for key in prompts.keys], np.int64)
  rows = np.zeros(len(distinct), np.int64)
  rows[inverse] = np.arange(len(inverse))
  work = Work(
    prompts,
    rows,
    inverse,
    texts=[None] * len(rows),
    attempts=[0] * len(rows),
    parse=wording.parse,
  )
  _recall(store, work, writer_config.max_attempts)
  return work


def describe_work(writer_config: ml_collections.ConfigDict, work: Work) -> str:
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
  """Reads the answers that the store holds and `work` has not seen."""
  pending = work.unfinished(max_attempts)
  while pending:
    rows = store.find(
      [call_key(work, prompt, work.attempts[prompt]) for prompt in pending]
    )
    pending = [
      prompt
      for prompt, row in zip(pending, rows)
      if row >= 0
      and not work.read_answer(prompt, json.loads(store.read(row))['answer'])
      and work.attempts[prompt] < max_attempts
    ]


def call_key(work: Work, prompt: int, attempt: int) -> bytes:
  """The key in the store of an attempt at a prompt."""
  return digest(work.prompts.keys[work.rows[prompt]].hex(), attempt)


def _ask(
  writer_config: ml_collections.ConfigDict,
  model: language_model.Model,
  store: Store,
  work: Work,
) -> None:
  """Asks all that is unfinished, in rounds."""
  max_attempts = writer_config.max_attempts
  todo = work.unfinished(max_attempts)
  finished = len(work.rows) - len(todo)
  progress = Progress('writing facets', len(todo), 'prompt')
  size, tokens = _FIRST_ROUND, 0

  try:
    while todo:
      asked, todo = todo[:size], todo[size:]
      size = min(2 * size, _LARGEST_ROUND)
      finished += len(asked)

      # What could not be read is asked again within the round.
      while asked:
        requests = [request_for(writer_config, work, i) for i in asked]
        for group in model.answer(requests):
          _keep(store, work, group)
          tokens += sum(r.input_tokens + r.output_tokens for _, r in group)
          done = [not work.is_open(r.prompt, max_attempts) for r, _ in group]
          if any(done):
            progress(sum(done))
        asked = [i for i in asked if work.is_open(i, max_attempts)]

      failed = sum(attempts == max_attempts for attempts in work.attempts)
      # Before the end, stop only at more failures than chance explains.
      _check_failures(
        writer_config,
        work,
        store,
        failed=failed,
        finished=finished,
        sigmas=3.0,
      )
  finally:
    seconds = progress.close()
    if tokens:
      rate = json.dumps({'tokens_per_s': tokens / seconds})
      write_atomically(store.folder / _RATE, rate)


def request_for(
  writer_config: ml_collections.ConfigDict, work: Work, prompt: int
) -> language_model.Request:
  """The next call for a prompt."""
  row, attempt = work.rows[prompt], work.attempts[prompt]
  key = digest(writer_config.seed, work.prompts.keys[row].hex(), attempt)
  temperature = float(writer_config.temperature)
  return language_model.Request(
    prompt=prompt,
    message=work.prompts.message(row),
    tokens=int(work.prompts.tokens[row]),
    temperature=(
      max(temperature, _RETRY_TEMPERATURE) if attempt else temperature
    ),
    seed=int.from_bytes(key[:8], 'little') >> 1,
  )


def _keep(
  store: Store,
  work: Work,
  group: list[tuple[language_model.Request, language_model.Reply]],
) -> None:
  """Stores answers, then reads them."""
  asked = [request.prompt for request, _ in group]
  keys = [call_key(work, prompt, work.attempts[prompt]) for prompt in asked]
  store.append(keys, [payload(reply) for _, reply in group])
  for request, reply in group:
    work.read_answer(request.prompt, reply.text)


def payload(reply: language_model.Reply) -> bytes:
  """What a store keeps of a reply."""
  return json.dumps(
    {
      'answer': reply.text,
      'input_tokens': reply.input_tokens,
      'output_tokens': reply.output_tokens,
    }
  ).encode()


def _check_failures(
  writer_config: ml_collections.ConfigDict,
  work: Work,
  store: Store,
  *,
  failed: int,
  finished: int,
  sigmas: float = 0.0,
) -> None:
  """Stops where too many prompts have failed.

  Args:
    writer_config: `config.facets.writer`.
    work: for the last malformed answer.
    store: named in the message, as it keeps the answers.
    failed: how many prompts have failed.
    finished: how many prompts are finished, failed ones included.
    sigmas: standard deviations by which the limit may be exceeded.
  """
  limit = writer_config.max_failure_rate * finished
  if failed <= limit + sigmas * math.sqrt(limit):
    return
  raise InputError(
    f'config.facets.writer.max_failure_rate: {failed:,} of {finished:,} '
    f'prompts ({failed / finished:.1%}) have failed, each in '
    f'{writer_config.max_attempts} attempts; the limit is '
    f'{writer_config.max_failure_rate:.1%}. The last malformed answer: '
    f'{work.reason}. Another model, more max_output_tokens or max_attempts, '
    f'or a higher limit may help; all answers are kept in {store.folder}'
  )
