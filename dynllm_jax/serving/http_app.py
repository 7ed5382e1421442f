"""The HTTP interface: routes, what each refuses, and their description.

Every refusal is `{"error": "..."}`, a line that names field, value and what is
allowed: 400 for a body that is no JSON, 401 without the token, 404 for what is
not there, 408, 413 and 415 for bodies, 409 for an event whose id is another's
and for a server that follows, 422 for a value that is not allowed, 429 where
too many requests wait, 503 before the server is ready and where the journal
cannot be written. A refused request changes nothing.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from collections.abc import Callable
import contextlib
import hashlib
import pathlib
import re
import time as time_lib
from typing import Annotated
from typing import Any

import fastapi
from fastapi import Path
from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import dynllm_jax
from dynllm_jax.live.journal import JournalError
from dynllm_jax.live.journaling import OtherEventError
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.serving import guards
from dynllm_jax.serving import http_bodies as bodies
from dynllm_jax.serving import questions
from dynllm_jax.serving.micro_batches import Busy
from dynllm_jax.serving.server_metrics import Metrics
from dynllm_jax.serving.service import MAX_K
from dynllm_jax.serving.service import Service
from dynllm_jax.serving.service import Wanted
from dynllm_jax.types import InputError

MAX_BODY = 4 << 20  # bytes
_RETRY_SECONDS = '1'
_PAGE = pathlib.Path(__file__).with_name('page.html')
_FOUND = 20  # ids of a list to choose from

_Id = Annotated[str, Path(min_length=1, max_length=1024, pattern=r'^[^\x00]+$')]
_Time = Annotated[
  int | None,
  Query(
    ge=0, le=1 << 53, description='Unix seconds, not before the newest event.'
  ),
]
_K = Annotated[int, Query(ge=1, le=MAX_K, description='How many items.')]


class NotFound(InputError):
  """What a path names is not there."""


_STATUSES = {NotFound: 404, OtherEventError: 409, JournalError: 503}


class App:
  """The server: an application for uvicorn, and the state behind it.

  Attributes:
    application: of ASGI.
    service: None before the model is restored.
    failure: why it could not be.

  Args:
    opening: a context whose value is the recommender; entered in a thread once
      the server listens, left when it stops.
    token: which every request must have; '' for none.
    follows: whether the recommender follows a journal, and takes in nothing.
    hosts: names by which the server may be called; ('*',) for any.
    waiting: requests that may wait in each queue.
    on_failure: called where the model cannot be restored.
  """

  def __init__(
    self,
    opening: contextlib.AbstractContextManager[Recommender],
    *,
    token: str = '',
    follows: bool = False,
    hosts: tuple[str, ...] = ('*',),
    waiting: int = 1024,
    on_failure: Callable[[], object] = lambda: None,
  ) -> None:
    self._opening, self._waiting = opening, waiting
    self._follows = follows
    self._on_failure = on_failure
    self.service: Service | None = None
    self.failure: BaseException | None = None
    self.metrics = Metrics()
    self.page = _page()

    app = fastapi.FastAPI(
      title='dynllm_jax',
      version=dynllm_jax.__version__,
      description='Recommendations of a trained model, and what users do.',
      lifespan=self._lifespan,
      docs_url=None,
      redoc_url=None,
      redirect_slashes=False,
      responses=_refusals(401, 429, 503),
    )
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(InputError, _refuse_input)
    app.add_exception_handler(Busy, _refuse_busy)
    _add_routes(app, self)
    app.add_middleware(guards.LimitedBody, limit=MAX_BODY)
    if token:
      app.add_middleware(guards.BearerToken, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(_Counted, metrics=self.metrics)
    self.application = app

  @property
  def ready(self) -> Service:
    """The service.

    Raises:
      HTTPException: before the model is restored and warm.
    """
    if self.service is None:
      raise HTTPException(
        503,
        'the model is being restored; allowed: to ask again',
        {'retry-after': _RETRY_SECONDS},
      )
    return self.service

  @property
  def ready_to_write(self) -> Service:
    """The service, of a server that takes in events.

    Raises:
      HTTPException: if this one follows, or is not ready.
    """
    if self._follows:
      raise HTTPException(
        409,
        'this server follows a journal; allowed: to send events to the one '
        'that writes it',
      )
    return self.ready

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Restores the model while the server listens; closes it at the end."""
    del app
    with contextlib.ExitStack() as stack:
      start = asyncio.create_task(self._start(stack))
      try:
        yield
      finally:
        await start
        if self.service is not None:
          service, self.service = self.service, None
          await service.close()
          await asyncio.to_thread(stack.close)

  async def _start(self, stack: contextlib.ExitStack) -> None:
    """Restores and warms up; a failure ends the server."""
    try:
      recommender = await asyncio.to_thread(stack.enter_context, self._opening)
      service = Service(
        recommender, self._waiting, on_batch=self.metrics.batches.observe
      )
      await asyncio.to_thread(service.warm_up)
    except Exception as error:  # whoever runs the server raises it
      self.failure = error
      self._on_failure()
      return

    watch = self.metrics.watch
    watch('users', 'Users that are known.', lambda: len(recommender.users))
    watch('items', 'Items of the catalogue.', lambda: len(recommender.items))
    watch(
      'journal_position',
      'Batches of events that the state holds.',
      lambda: recommender.position,
    )
    watch(
      'waiting_reads', 'Recommendations waited for.', lambda: len(service.reads)
    )
    watch('waiting_writes', 'Writes waited for.', lambda: len(service.writes))
    self.service = service


# ------------------------------------------------------------------- the routes


def _add_routes(app: fastapi.FastAPI, server: App) -> None:
  """All routes."""
  _add_writing(app, server)
  _add_reading(app, server)
  _add_looking_up(app, server)
  _add_operation(app, server)


def _add_writing(app: fastapi.FastAPI, server: App) -> None:
  """What changes the state."""

  @app.post(
    '/events',
    summary='Takes in what users did, all of it or nothing',
    tags=['writing'],
    responses=_answers(bodies.Taken, 400, 408, 409, 413, 415, 422),
  )
  async def events(
    body: Annotated[
      bodies.Events, fastapi.Body(examples=bodies.EVENT_EXAMPLES)
    ],
  ) -> fastapi.Response:
    """Acknowledged once the journal has them on its disk."""
    rows = body if isinstance(body, list) else [body]
    found = await server.ready_to_write.observe(
      [row.model_dump(exclude_none=True) for row in rows]
    )
    server.metrics.events.inc(found.events)
    return _json(questions.observed(found))

  @app.post(
    '/items',
    summary='Adds items to the catalogue, or changes their texts',
    tags=['writing'],
    responses=_answers(bodies.Taken, 400, 408, 409, 413, 415, 422),
  )
  async def items(
    body: Annotated[bodies.Items, fastapi.Body(examples=bodies.ITEM_EXAMPLES)],
  ) -> fastapi.Response:
    """They can be recommended at once."""
    rows = body if isinstance(body, list) else [body]
    found = await server.ready_to_write.add_items(
      [row.model_dump(exclude_none=True) for row in rows]
    )
    return _json(questions.observed(found))


def _add_reading(app: fastapi.FastAPI, server: App) -> None:
  """What is asked of the model."""

  @app.get(
    '/recommendations/{user}',
    summary='The items that a user is likeliest to take next',
    tags=['reading'],
    responses=_answers(bodies.Recommended, 404, 422),
  )
  async def recommendations(
    user: _Id,
    k: _K = 10,
    time: _Time = None,
    exact: bool = False,
    exclude_seen: bool = False,
    category: Annotated[list[str] | None, Query(max_length=100)] = None,
    exclude: Annotated[list[str] | None, Query(max_length=1000)] = None,
  ) -> fastapi.Response:
    """Somebody who is not known is answered as a new user is."""
    wanted = Wanted(
      user,
      k,
      time,
      exact,
      exclude_seen,
      categories=None if category is None else tuple(category),
      exclude=None if exclude is None else tuple(exclude),
    )
    service = server.ready
    found = await service.recommend(wanted)
    return _json(questions.recommended(service.recommender, found))

  @app.post(
    '/recommendations',
    summary='Recommendations for several users, and for guests',
    tags=['reading'],
    responses=_answers(bodies.RecommendedAll, 400, 408, 413, 415, 422),
  )
  async def recommendations_of_many(
    body: Annotated[
      bodies.Requests, fastapi.Body(examples=bodies.REQUEST_EXAMPLES)
    ],
  ) -> fastapi.Response:
    """A guest's session is as good as observed, and is forgotten."""
    service = server.ready
    wanted = [
      _wanted(number, request) for number, request in enumerate(body.requests)
    ]
    found = await service.recommend_all(wanted)
    return _json(
      {
        'answers': [
          questions.recommended(service.recommender, one) for one in found
        ]
      }
    )

  @app.get(
    '/items/{item}/similar',
    summary='The items like an item',
    tags=['reading'],
    responses=_answers(bodies.Alike, 404, 422),
  )
  async def similar(item: _Id, k: _K = 10) -> fastapi.Response:
    """By the cosine of their vectors."""
    service = server.ready
    _check_item(service.recommender, item)
    return _json(questions.alike(await service.similar(item, k)))

  @app.get(
    '/explanations/{user}/{item}',
    summary='What the score of an item for a user is made of',
    tags=['reading'],
    responses=_answers(bodies.Explained, 404, 422),
  )
  async def explanation(
    user: _Id, item: _Id, time: _Time = None
  ) -> fastapi.Response:
    """The share of each term, and what each rests on."""
    service = server.ready
    _check_item(service.recommender, item)
    recommender = service.recommender
    found = await service.other(lambda: recommender.explain(user, item, time))
    return _json(questions.as_values(found))


def _add_looking_up(app: fastapi.FastAPI, server: App) -> None:
  """What there is, for whoever has to choose."""

  @app.get(
    '/users',
    summary='Users whose ids begin with a text',
    tags=['looking up'],
    responses=_answers(bodies.Found, 422),
  )
  async def users(
    begin: Annotated[str, Query(max_length=1024)] = '',
  ) -> fastapi.Response:
    """At most twenty."""
    recommender = server.ready.recommender
    found = await server.ready.other(
      lambda: _first(name for name in recommender.users if _begins(name, begin))
    )
    return _json({'ids': found, 'titles': [''] * len(found)})

  @app.get(
    '/users/{user}',
    summary='What a user took',
    tags=['looking up'],
    responses=_answers(bodies.User, 404, 422),
  )
  async def user(
    user: _Id,
    last: Annotated[int, Query(ge=1, le=1000)] = 50,
  ) -> fastapi.Response:
    """Of a user without an event, nothing."""
    recommender = server.ready.recommender
    found = await server.ready.other(lambda: recommender.purchases(user, last))
    return _json(
      {
        'user': user,
        'known': recommender.has_user(user),
        'purchases': questions.as_values(found),
      }
    )

  @app.get(
    '/items',
    summary='Items whose titles or ids have a text in them',
    tags=['looking up'],
    responses=_answers(bodies.Found, 422),
  )
  async def items(
    text: Annotated[str, Query(max_length=1024)] = '',
  ) -> fastapi.Response:
    """At most twenty."""
    recommender = server.ready.recommender
    wanted = text.casefold()
    found = await server.ready.other(
      lambda: _first(
        (item, title)
        for item, title in zip(recommender.items, recommender.titles)
        if wanted in item.casefold() or wanted in title.casefold()
      )
    )
    ids, titles = [one[0] for one in found], [one[1] for one in found]
    return _json({'ids': ids, 'titles': titles})


def _add_operation(app: fastapi.FastAPI, server: App) -> None:
  """The page, and what whoever runs the server watches."""

  @app.get('/', include_in_schema=False)
  async def page() -> fastapi.Response:
    html, policy = server.page
    return fastapi.Response(
      html,
      media_type='text/html',
      headers={
        'content-security-policy': policy,
        'x-content-type-options': 'nosniff',
        'referrer-policy': 'no-referrer',
      },
    )

  @app.get(
    '/health/live',
    summary='Whether the server runs',
    tags=['operation'],
    responses={200: {'model': bodies.Health}},
  )
  async def live() -> fastapi.Response:
    """It does, if it answers."""
    return _json({'status': 'live'})

  @app.get(
    '/health/ready',
    summary='Whether the model is restored and warm',
    tags=['operation'],
    responses=_answers(bodies.Ready),
  )
  async def ready() -> fastapi.Response:
    """503 before."""
    position = server.ready.recommender.position
    return _json({'status': 'ready', 'position': position})

  @app.get(
    '/metrics',
    summary='Counts, times and sizes, for Prometheus',
    tags=['operation'],
    responses={200: {'content': {'text/plain': {}}}},
    response_class=fastapi.responses.PlainTextResponse,
  )
  async def metrics() -> fastapi.Response:
    """Those of this server."""
    return fastapi.Response(server.metrics.text(), media_type='text/plain')


# ---------------------------------------------------------------------- helpers


class _Counted:
  """Counts requests by route and status, and takes their time."""

  def __init__(self, application: guards.Application, metrics: Metrics) -> None:
    self._application, self._metrics = application, metrics

  async def __call__(
    self,
    scope: guards.Scope,
    receive: guards.Receive,
    send: guards.Send,
  ) -> None:
    """Passes a request on."""
    if scope['type'] != 'http':
      await self._application(scope, receive, send)
      return
    began, status = time_lib.perf_counter(), ['500']

    async def counted(message: Any) -> None:
      if message['type'] == 'http.response.start':
        status[0] = str(message['status'])
      await send(message)

    try:
      await self._application(scope, receive, counted)
    finally:
      # A path that is no route could be anything, and each would be a label.
      route = getattr(scope.get('route'), 'path', 'none')
      self._metrics.requests.labels(route, status[0]).inc()
      self._metrics.seconds.labels(route).observe(
        time_lib.perf_counter() - began
      )


def _wanted(number: int, request: bodies.Request) -> Wanted:
  """A request of a body.

  Raises:
    InputError: if it is for nobody, or for two.
  """
  if (request.user is None) == (request.session is None):
    raise InputError(
      f'requests[{number}]: allowed: a "user", or the "session" of a guest'
    )
  names = lambda column: None if column is None else tuple(column)
  return Wanted(
    user=request.user or '',
    k=request.k,
    time=request.time,
    exact=request.exact,
    exclude_seen=request.exclude_seen,
    candidates=names(request.candidates),
    categories=names(request.categories),
    exclude=names(request.exclude),
    session=None
    if request.session is None
    else tuple((visit.item, visit.time) for visit in request.session),
  )


def _first(found: Any) -> list[Any]:
  """The first of them, in order."""
  return [one for _, one in zip(range(_FOUND), found)]


def _begins(name: str, begin: str) -> bool:
  return name.casefold().startswith(begin.casefold())


def _check_item(recommender: Recommender, item: str) -> None:
  if not recommender.has_item(item):
    raise NotFound(
      f'item: there is no item {item[:80]!r}; allowed: one of the catalogue'
    )


def _json(values: Any, status: int = 200) -> fastapi.Response:
  return fastapi.Response(
    questions.as_text(values), status, media_type='application/json'
  )


def _answers(model: type[BaseModel], *statuses: int) -> dict[int | str, Any]:
  """The answers of a route, for its description."""
  return {200: {'model': model}, **_refusals(*statuses, 401, 429, 503)}


def _refusals(*statuses: int) -> dict[int | str, Any]:
  return {status: {'model': bodies.Refused} for status in statuses}


def _refusal(status: int, error: str, **headers: str) -> fastapi.Response:
  response = _json({'error': error}, status)
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
    retry_after=_RETRY_SECONDS,
  )


def _page() -> tuple[str, str]:
  """The page, and the policy that lets its own script and style run alone."""
  html = _PAGE.read_text(encoding='utf-8')

  def digest(tag: str) -> str:
    match = re.search(rf'<{tag}>(.*?)</{tag}>', html, re.DOTALL)
    assert match is not None
    digested = hashlib.sha256(match[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digested).decode()}'"

  return html, (
    f"default-src 'none'; script-src {digest('script')}; style-src "
    f"{digest('style')}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
