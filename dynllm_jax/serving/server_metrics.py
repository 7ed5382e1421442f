"""What a server counts, for Prometheus."""

from collections.abc import Callable
import time as time_lib
from typing import Any

import jax
import prometheus_client as prometheus

from dynllm_jax.serving import guards

_COMPILED = '/jax/core/compile/backend_compile_duration'
_SECONDS = (
  *(0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05),
  *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
  """Counts, times and sizes of one server.

  Attributes:
    registry: all of them.
  """

  def __init__(self) -> None:
    self.registry = prometheus.CollectorRegistry()
    self.requests = prometheus.Counter(
      'dynllm_requests',
      'Requests answered, by route and status.',
      ('route', 'status'),
      registry=self.registry,
    )
    self.seconds = prometheus.Histogram(
      'dynllm_request_seconds',
      'Time to the answer of a request, by route.',
      ('route',),
      buckets=_SECONDS,
      registry=self.registry,
    )

    self.batches = prometheus.Histogram(
      'dynllm_users_together',
      'Users whose recommendations were computed together.',
      buckets=_BATCHES,
      registry=self.registry,
    )

    self.events = prometheus.Counter(
      'dynllm_events',
      'Events taken in since the server started.',
      registry=self.registry,
    )
    self.programs = prometheus.Counter(
      'dynllm_programs_compiled',
      'Programs compiled, or read from the cache, since the server started.',
      registry=self.registry,
    )

    jax.monitoring.register_event_duration_secs_listener(self._count_program)

  def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
    """Adds a value that is read whenever somebody asks.

    Args:
      name: without the prefix `dynllm_`.
      about: in a line.
      read: its value now.
    """
    gauge = prometheus.Gauge(f'dynllm_{name}', about, registry=self.registry)
    gauge.set_function(read)

  def text(self) -> bytes:
    """All of them in the format of Prometheus."""
    return prometheus.generate_latest(self.registry)

  def _count_program(
    self, event: str, duration_secs: float, **kwargs: str | int
  ) -> None:
    del duration_secs, kwargs
    if event == _COMPILED:
      self.programs.inc()


class Counted:
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
