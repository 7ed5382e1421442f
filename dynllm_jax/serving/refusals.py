"""What a request is refused with: a status, and a line that says why.

Every refusal is `{"error": "..."}`, which names field, value and what is
allowed: 400 for a body that is no JSON, 401 without the token, 404 for what is
not there, 408, 413 and 415 for bodies, 409 for an event whose id is another's
and for a server that follows, 422 for a value that is not allowed, 429 where
too many requests wait, 503 before the server is ready and where the journal
cannot be written. A refused request changes nothing.
"""

from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from dynllm_jax.live.journal import JournalError
from dynllm_jax.live.journaling import OtherEventError
from dynllm_jax.serving import http_bodies as bodies
from dynllm_jax.serving import questions
from dynllm_jax.serving.micro_batches import Busy
from dynllm_jax.types import InputError

RETRY_SECONDS = '1'


class NotFound(InputError):
  """What a path names is not there."""


_STATUSES = {NotFound: 404, OtherEventError: 409, JournalError: 503}


def add_to(app: fastapi.FastAPI) -> None:
  """Lets an application refuse what its routes raise."""
  app.add_exception_handler(RequestValidationError, _refuse_fields)
  app.add_exception_handler(HTTPException, _refuse_route)
  app.add_exception_handler(InputError, _refuse_input)
  app.add_exception_handler(Busy, _refuse_busy)


def as_json(values: Any, status: int = 200) -> fastapi.Response:
  """An answer of JSON values."""
  return fastapi.Response(
    questions.as_text(values), status, media_type='application/json'
  )


def answers(model: type[BaseModel], *statuses: int) -> dict[int | str, Any]:
  """The answers of a route, for its description."""
  return {200: {'model': model}, **refusals(*statuses, 401, 429, 503)}


def refusals(*statuses: int) -> dict[int | str, Any]:
  """Refusals that a route may answer with, for its description."""
  return {status: {'model': bodies.Refused} for status in statuses}


def _refusal(status: int, error: str, **headers: str) -> fastapi.Response:
  response = as_json({'error': error}, status)
  response.headers.update(
    {name.replace('_', '-'): value for name, value in headers.items()}
  )
  return response


async def _refuse_fields(
  request: fastapi.Request, error: Exception
) -> fastapi.Response:
  """The first field that is not allowed, in a line."""
  del request
  assert isinstance(error, RequestValidationError)
  first = error.errors()[0]
  if first['type'] == 'json_invalid':
    return _refusal(400, f'the body is no JSON ({first["ctx"]["error"]})')
  where = [part for part in first['loc'] if part not in ('event', 'many')]
  field = ''.join(
    f'[{part}]' if isinstance(part, int) else f'.{part}' for part in where
  )
  shown = repr(first.get('input'))
  shown = shown if len(shown) <= 80 else shown[:77] + '...'
  return _refusal(
    422, f'{field[1:]}: {shown} is not allowed; {first["msg"].lower()}'
  )


async def _refuse_route(
  request: fastapi.Request, error: Exception
) -> fastapi.Response:
  assert isinstance(error, HTTPException)
  words = {
    400: 'the body is no JSON',
    404: f'there is no {request.url.path[:80]}',
  }
  return _refusal(
    error.status_code,
    words.get(error.status_code, str(error.detail)),
    **{name.replace('-', '_'): v for name, v in (error.headers or {}).items()},
  )


async def _refuse_input(
  request: fastapi.Request, error: Exception
) -> fastapi.Response:
  del request
  status = 422
  for kind, its_status in _STATUSES.items():
    if isinstance(error, kind):
      status = its_status
  return _refusal(status, ' '.join(str(error).split()))


async def _refuse_busy(
  request: fastapi.Request, error: Exception
) -> fastapi.Response:
  del request, error
  return _refusal(
    429,
    'too many requests wait already; allowed: to ask again',
    retry_after=RETRY_SECONDS,
  )
