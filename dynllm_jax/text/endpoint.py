"""Calls to an OpenAI-compatible endpoint: retried, bounded, counted.

The encoder and the writer of this kind share it. It reads these fields of
their config:

    base_url        '' for OpenAI itself, else for example http://host:8000/v1
    concurrency     calls in flight at once
    timeout_s       seconds that an answer may take
    num_retries     of a call that fails for a temporary reason
    max_calls       spending limit of a run, retries included; 0 for none
    max_tokens      limit of tokens, in and out together, as the endpoint counts
                    them; 0 for none

The key is only read from the environment variable OPENAI_API_KEY.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import dataclasses
import json
import os
import random
import threading
from typing import Any

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.types import InputError

KEY_VARIABLE = 'OPENAI_API_KEY'
MAX_DELAY = 60.0  # seconds between two tries
RULES = (
  checks.at_least('concurrency', 1),
  checks.above_zero('timeout_s'),
  checks.at_least('num_retries', 0),
  checks.at_least('max_calls', 0, ' (0: no limit)'),
  checks.at_least('max_tokens', 0, ' (0: no limit)'),
  Rule(
    'base_url',
    "an address as http://host:8000/v1, or '' for OpenAI",
    lambda value: not value or value.startswith(('http://', 'https://')),
  ),
)


class BadAnswerError(Exception):
  """An answer that does not fit the request; the call is tried again."""


class Refused(Exception):
  """The result of a request that the endpoint will never answer.

  Its text says why. It is returned, not raised, so that other requests go on.
  """


@dataclasses.dataclass
class Usage:
  """What has been spent, and how often calls were tried again.

  Attributes:
    calls: tries of all requests.
    retries: those of them that were not the first.
    tokens: in and out, as the endpoint counts them.
  """

  calls: int = 0
  retries: int = 0
  tokens: int = 0


class Endpoint:
  """Runs requests on its own threads and counts what they spend.

  Attributes:
    client: of the package `openai`.
    usage: what has been spent so far.
    first_delay: seconds before a first retry; each later one waits twice as
      long as the one before, up to `MAX_DELAY`.
  """

  first_delay = 0.5

  def __init__(self, field: str, settings: Any) -> None:
    """Makes the client; no call is made.

    Args:
      field: where the settings are in the config, as 'config.facets.encoder'.
      settings: the fields named above.

    Raises:
      InputError: if a field is not allowed, the key is missing, or the
        package `openai` is.
    """
    checks.check(field, settings, RULES)
    try:
      import openai
    except ImportError as error:
      raise InputError(
        f"{field}.name: 'openai' needs the package openai ({error}); "
        "install it with pip install 'dynllm_jax[llm]'"
      ) from error
    import httpx  # of openai

    key = os.environ.get(KEY_VARIABLE, '')
    if not key.isascii():
      raise InputError(
        f'{field}.name: the environment variable {KEY_VARIABLE} has other '
        'than ASCII characters, which no key has'
      )
    if not key and not settings.base_url:
      raise InputError(
        f"{field}.name: 'openai' needs the environment variable "
        f'{KEY_VARIABLE}, or {field}.base_url of a server without keys'
      )
    self._openai, self._field, self._settings = openai, field, settings
    try:
      self.client = openai.OpenAI(
        api_key=key or 'none',
        timeout=settings.timeout_s,
        max_retries=0,
        base_url=settings.base_url or 'https://api.openai.com/v1',
      )
    except (
      ValueError,
      TypeError,
      httpx.InvalidURL,
      openai.OpenAIError,
    ) as error:
      raise InputError(
        f'{field}.base_url: {settings.base_url!r} ({error}); it must be as '
        'http://host:8000/v1'
      ) from error
    self.usage = Usage()
    self._reserved = 0
    self._changed = threading.Condition()
    self._stop = threading.Event()

  def run(
    self,
    requests: Iterable[Any],
    call: Callable[[Any, Any], tuple[Any, int]],
    tokens: Callable[[Any], int] = lambda request: 0,
  ) -> Iterator[tuple[Any, Any]]:
    """Runs requests and yields results in the order in which they come.

    Args:
      requests: anything that `call` understands; one is taken from the
        iterable whenever a call may begin.
      call: `call(client, request)` makes one call and returns its result and
        the tokens it has cost. For a malformed answer it raises
        BadAnswerError, or the error of reading it (a KeyError, for example).
        Several threads call it at once.
      tokens: the most that a request may cost, held back from the limit while
        the call is in flight.

    Yields:
      A request and its result, a `Refused` if it will never have one.

    Raises:
      InputError: if a limit is reached, the endpoint refuses the key, the
        model or the address, or retries are used up. Before that all calls in
        flight are finished and yielded, and no other begins.
    """
    self._stop.clear()
    waiting = iter(requests)
    pending: dict[concurrent.futures.Future, Any] = {}
    failure = None

    def begin() -> bool:
      """Begins the next request; False if there is none."""
      for request in waiting:
        future = pool.submit(self._answer, call, request, tokens(request))
        pending[future] = request
        return True
      return False

    limit = self._settings.concurrency
    with concurrent.futures.ThreadPoolExecutor(limit) as pool:
      try:
        more = True
        while True:
          while more and failure is None and len(pending) < limit:
            more = begin()
          if not pending:
            break

          done, _ = concurrent.futures.wait(
            pending, return_when=concurrent.futures.FIRST_COMPLETED
          )
          for future in done:
            request = pending.pop(future)
            try:
              result = future.result()
            except InputError as error:
              failure = failure or error
              self._stop.set()
            else:
              yield request, result
      finally:
        self._stop.set()
    if failure is not None:
      raise failure

  def _answer(self, call: Callable, request: Any, most: int) -> Any:
    """Calls until there is an answer, or a reason why there will be none."""
    api = self._openai
    why: Exception = BadAnswerError('no call was made')
    for retry in range(self._settings.num_retries + 1):
      if retry:
        self._wait(retry, why)
      self._reserve(most, retry)
      spent = 0
      try:
        result, spent = call(self.client, request)
        return result
      except (api.AuthenticationError, api.PermissionDeniedError) as error:
        raise InputError(
          f'{KEY_VARIABLE}: refused by {self._where()} ({_short(error)})'
        ) from error
      except api.NotFoundError as error:
        raise InputError(
          f'{self._field}.model: {self._settings.model!r} is not served by '
          f'{self._where()}, or {self._field}.base_url is wrong '
          f'({_short(error)})'
        ) from error
      except (
        api.APIConnectionError,
        api.RateLimitError,
        api.InternalServerError,
        api.ConflictError,
        api.APIResponseValidationError,
        BadAnswerError,
        json.JSONDecodeError,
      ) as error:
        why = error  # time-outs are connection errors
      # The client accepts JSON of any shape, which `call` then cannot read.
      except (AttributeError, IndexError, KeyError, TypeError) as error:
        why = BadAnswerError(f'{type(error).__name__}: {error}')
      except api.APIStatusError as error:
        if error.status_code != 408:
          return Refused(_short(error))
        why = error
      finally:
        with self._changed:
          self._reserved -= most
          self.usage.tokens += spent
          self._changed.notify_all()
    if isinstance(why, (BadAnswerError, json.JSONDecodeError)):
      return Refused(f'malformed answers only; the last: {_short(why)}')
    raise InputError(
      f'{self._field}.base_url: {self._where()} failed '
      f'{self._settings.num_retries + 1} times in a row ({_short(why)}); '
      'what is finished is kept, the same command goes on from there'
    ) from why

  def _reserve(self, most: int, retry: int) -> None:
    """Counts a call that is about to be made, if the limits allow it."""
    limits = self._settings
    with self._changed:
      # Calls in flight may cost less than they hold back.
      while self._reserved and self._over(most):
        self._changed.wait()
      name = 'max_tokens' if self._over(most) else 'max_calls'
      if self._over(most) or (
        limits.max_calls and self.usage.calls >= limits.max_calls
      ):
        raise InputError(
          f'{self._field}.{name}: the spending limit of {limits[name]:,} is '
          f'reached after {self.usage.calls:,} calls and '
          f'{self.usage.tokens:,} tokens; what is finished is kept, the '
          'same command goes on with a fresh limit'
        )
      self.usage.calls += 1
      self.usage.retries += bool(retry)
      self._reserved += most

  def _over(self, most: int) -> bool:
    """Whether a call of `most` tokens might exceed the limit."""
    limit = self._settings.max_tokens
    return bool(limit) and self.usage.tokens + self._reserved + most > limit

  def _wait(self, retry: int, why: Exception) -> None:
    """Waits before a retry, at least as long as the endpoint asks for."""
    delay = min(MAX_DELAY, self.first_delay * 2 ** (retry - 1))
    # Threads that failed together should not try again together.
    delay *= random.uniform(0.5, 1)
    headers = getattr(getattr(why, 'response', None), 'headers', {})
    try:
      asked = float(headers.get('retry-after', 0))
    except ValueError:  # a date
      asked = 0
    if self._stop.wait(max(delay, min(asked, MAX_DELAY))):
      raise InputError('stopped')

  def _where(self) -> str:
    return self._settings.base_url or 'OpenAI'


def _short(error: Exception) -> str:
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= 300 else f'{text[:300]}...'
