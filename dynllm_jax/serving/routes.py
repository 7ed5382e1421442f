"""The routes of the HTTP interface, and their description."""

import base64
import hashlib
import pathlib
import re
from typing import Annotated
from typing import Any
from typing import Protocol

import fastapi
from fastapi import Path
from fastapi import Query

from dynllm_jax.live.recommender import Recommender
from dynllm_jax.serving import http_bodies as bodies
from dynllm_jax.serving import questions
from dynllm_jax.serving.refusals import answers
from dynllm_jax.serving.refusals import as_json
from dynllm_jax.serving.refusals import NotFound
from dynllm_jax.serving.server_metrics import Metrics
from dynllm_jax.serving.service import MAX_K
from dynllm_jax.serving.service import Service
from dynllm_jax.serving.service import Wanted
from dynllm_jax.types import InputError

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


class Server(Protocol):
  """What routes ask of a server (`http_app.App`)."""

  metrics: Metrics

  @property
  def ready(self) -> Service:
    """The service; refused before there is one."""

  @property
  def ready_to_write(self) -> Service:
    """The service; refused where nothing is taken in."""


def add_to(app: fastapi.FastAPI, server: Server) -> None:
  """Adds all routes to an application."""
  _add_writing(app, server)
  _add_reading(app, server)
  _add_looking_up(app, server)
  _add_changing_over(app, server)
  _add_operation(app, server)


def _add_writing(app: fastapi.FastAPI, server: Server) -> None:
  """What changes the state."""

  @app.post(
    '/events',
    summary='Takes in what users did, all of it or nothing',
    tags=['writing'],
    responses=answers(bodies.Taken, 400, 408, 409, 413, 415, 422),
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
    return as_json(questions.observed(found))

  @app.post(
    '/items',
    summary='Adds items to the catalogue, or changes their texts',
    tags=['writing'],
    responses=answers(bodies.Taken, 400, 408, 409, 413, 415, 422),
  )
  async def items(
    body: Annotated[bodies.Items, fastapi.Body(examples=bodies.ITEM_EXAMPLES)],
  ) -> fastapi.Response:
    """They can be recommended at once."""
    rows = body if isinstance(body, list) else [body]
    found = await server.ready_to_write.add_items(
      [row.model_dump(exclude_none=True) for row in rows]
    )
    return as_json(questions.observed(found))


def _add_changing_over(app: fastapi.FastAPI, server: Server) -> None:
  """What whoever trains asks for."""

  @app.post(
    '/changeover',
    summary='Moves the server to another training run, without a gap',
    tags=['operation'],
    responses=answers(bodies.Changed, 400, 408, 413, 415, 422),
  )
  async def changeover(
    body: Annotated[
      bodies.Changeover, fastapi.Body(examples=bodies.CHANGEOVER_EXAMPLES)
    ],
  ) -> fastapi.Response:
    """Answered once the new run answers; requests are answered meanwhile."""
    recommender = await server.ready.changeover(body.run)
    return as_json({'run': recommender.run, 'position': recommender.position})


def _add_reading(app: fastapi.FastAPI, server: Server) -> None:
  """What is asked of the model."""

  @app.get(
    '/recommendations/{user}',
    summary='The items that a user is likeliest to take next',
    tags=['reading'],
    responses=answers(bodies.Recommended, 404, 422),
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
    return as_json(questions.recommended(service.recommender, found))

  @app.post(
    '/recommendations',
    summary='Recommendations for several users, and for guests',
    tags=['reading'],
    responses=answers(bodies.RecommendedAll, 400, 408, 413, 415, 422),
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
    return as_json(
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
    responses=answers(bodies.Alike, 404, 422),
  )
  async def similar(item: _Id, k: _K = 10) -> fastapi.Response:
    """By the cosine of their vectors."""
    service = server.ready
    _check_item(service.recommender, item)
    return as_json(questions.alike(await service.similar(item, k)))

  @app.get(
    '/explanations/{user}/{item}',
    summary='What the score of an item for a user is made of',
    tags=['reading'],
    responses=answers(bodies.Explained, 404, 422),
  )
  async def explanation(
    user: _Id, item: _Id, time: _Time = None
  ) -> fastapi.Response:
    """The share of each term, and what each rests on."""
    service = server.ready
    _check_item(service.recommender, item)
    recommender = service.recommender
    found = await service.other(lambda: recommender.explain(user, item, time))
    return as_json(questions.as_values(found))


def _add_looking_up(app: fastapi.FastAPI, server: Server) -> None:
  """What there is, for whoever has to choose."""

  @app.get(
    '/users',
    summary='Users whose ids begin with a text',
    tags=['looking up'],
    responses=answers(bodies.Found, 422),
  )
  async def users(
    begin: Annotated[str, Query(max_length=1024)] = '',
  ) -> fastapi.Response:
    """At most twenty."""
    recommender = server.ready.recommender
    found = await server.ready.other(
      lambda: _first(name for name in recommender.users if _begins(name, begin))
    )
    return as_json({'ids': found, 'titles': [''] * len(found)})

  @app.get(
    '/users/{user}',
    summary='What a user took',
    tags=['looking up'],
    responses=answers(bodies.User, 404, 422),
  )
  async def user(
    user: _Id,
    last: Annotated[int, Query(ge=1, le=1000)] = 50,
  ) -> fastapi.Response:
    """Of a user without an event, nothing."""
    recommender = server.ready.recommender
    found = await server.ready.other(lambda: recommender.purchases(user, last))
    return as_json(
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
    responses=answers(bodies.Found, 422),
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
    return as_json({'ids': ids, 'titles': titles})


def _add_operation(app: fastapi.FastAPI, server: Server) -> None:
  """The page, and what whoever runs the server watches."""
  html, policy = _page()

  @app.get('/', include_in_schema=False)
  async def page() -> fastapi.Response:
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
    return as_json({'status': 'live'})

  @app.get(
    '/health/ready',
    summary='Whether the model is restored and answers',
    tags=['operation'],
    responses=answers(bodies.Ready),
  )
  async def ready() -> fastapi.Response:
    """503 before."""
    service = server.ready
    recommender = service.recommender
    return as_json(
      {
        'status': 'ready',
        'position': recommender.position,
        'warm': service.is_warm,
        'run': recommender.run,
      }
    )

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
