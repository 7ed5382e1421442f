"""One run, and one server of it, for all tests of this folder."""

import contextlib
import os
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from dynllm_jax import Recommender
from dynllm_jax.serving import http_app
from tests.testing import kept_runs
from tests.testing import live_runs


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  """The run folder; all processes of the tests share it, and write nothing."""
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent
  folder = base / 'shop'
  return live_runs.untrained(folder)


class Server:
  """A server in a thread.

  Attributes:
    app: its application.
    url: where it listens.
    client: of it, with its token.
  """

  def __init__(self, opening, **options):
    self.app = http_app.App(opening, **options)
    config = uvicorn.Config(
      self.app.application, log_level='warning', loop='asyncio'
    )
    self._server = uvicorn.Server(config)
    self._socket = socket.create_server(('127.0.0.1', 0))
    self.url = f'http://127.0.0.1:{self._socket.getsockname()[1]}'
    token = options.get('token')
    headers = {'authorization': f'Bearer {token}'} if token else {}
    self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60)
    self._thread = threading.Thread(
      target=self._server.run, kwargs={'sockets': [self._socket]}
    )
    self._thread.start()

  def wait(self):
    """Waits until the model is ready and warm."""
    while not self.client.get('/health/ready').json().get('warm'):
      assert self.app.failure is None
      time.sleep(0.02)

  def stop(self):
    """Stops it, as SIGTERM does, and waits for its end."""
    self._server.should_exit = True
    self._thread.join()
    self.client.close()
    self._socket.close()


@contextlib.contextmanager
def served(opening, **options):
  server = Server(opening, **options)
  try:
    yield server
  finally:
    server.stop()


@pytest.fixture(scope='session')
def server(run, tmp_path_factory):
  """A server of the run; what a test observes, later ones see."""
  journal = tmp_path_factory.mktemp('server') / 'journal.sqlite'
  with kept_runs.build_once():
    shop = Recommender.restore(str(run), journal=str(journal))
    # Each test compiles what it asks for.
    with served(shop, warms=False) as server:
      server.wait()
      yield server


@pytest.fixture
def client(server):
  return server.client
