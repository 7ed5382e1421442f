"""The server: an application of routes, and the model behind it.

It listens while the model is restored, answers as soon as the model can, and
compiles what other questions need meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
import contextlib

import fastapi
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import dynllm_jax
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.serving import guards
from dynllm_jax.serving import refusals
from dynllm_jax.serving import routes
from dynllm_jax.serving.server_metrics import Counted
from dynllm_jax.serving.server_metrics import Metrics
from dynllm_jax.serving.service import Service

MAX_BODY = 4 << 20  # bytes


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
    warms: whether what requests run is compiled ahead (`Service`).
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
    warms: bool = True,
    on_failure: Callable[[], object] = lambda: None,
  ) -> None:
    self._opening, self._waiting, self._warms = opening, waiting, warms
    self._follows = follows
    self._on_failure = on_failure
    self.service: Service | None = None
    self.failure: BaseException | None = None
    self.metrics = Metrics()

    app = fastapi.FastAPI(
      title='dynllm_jax',
      version=dynllm_jax.__version__,
      description='Recommendations of a trained model, and what users do.',
      lifespan=self._lifespan,
      docs_url=None,
      redoc_url=None,
      redirect_slashes=False,
      responses=refusals.refusals(401, 429, 503),
    )
    refusals.add_to(app)
    routes.add_to(app, self)
    app.add_middleware(guards.LimitedBody, limit=MAX_BODY)
    if token:
      app.add_middleware(guards.BearerToken, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Counted, metrics=self.metrics)
    self.application = app

  @property
  def ready(self) -> Service:
    """The service.

    Raises:
      HTTPException: before the model is restored.
    """
    if self.service is None:
      raise HTTPException(
        503,
        'the model is being restored; allowed: to ask again',
        {'retry-after': refusals.RETRY_SECONDS},
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
    """Restores, until the model answers; a failure ends the server."""
    try:
      recommender = await asyncio.to_thread(stack.enter_context, self._opening)
      service = Service(
        recommender,
        self._waiting,
        on_batch=self.metrics.batches.observe,
        warms=self._warms,
      )
      await asyncio.to_thread(service.answer_once)
    except Exception as error:  # whoever runs the server raises it
      self._fail(error)
      return

    model = lambda: service.recommender
    watch = self.metrics.watch
    watch('users', 'Users that are known.', lambda: model().num_users)
    watch('items', 'Items of the catalogue.', lambda: model().num_items)
    watch(
      'journal_position',
      'Batches of events that the state holds.',
      lambda: model().position,
    )
    watch(
      'waiting_reads', 'Recommendations waited for.', lambda: len(service.reads)
    )
    watch('waiting_writes', 'Writes waited for.', lambda: len(service.writes))
    self.service = service
    service.start_warming(self._fail)

  def _fail(self, error: Exception) -> None:
    """Ends the server."""
    self.failure = error
    self._on_failure()
