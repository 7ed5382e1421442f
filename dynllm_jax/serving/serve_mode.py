"""`--mode=serve`: a trained model over HTTP."""

import importlib.util
import ipaddress
import os
import socket

from dynllm_jax.progress import say
from dynllm_jax.runs.command_line import Command
from dynllm_jax.serving import opening
from dynllm_jax.types import InputError

TOKEN = 'DYNLLM_TOKEN'  # noqa: S105 (the name of a variable)
_LIBRARIES = ('fastapi', 'uvicorn', 'prometheus_client')
_STOP_SECONDS = 30  # for requests that are under way
_CONNECTIONS = 2048
# A connection that nobody uses stays open: longer than clients and proxies keep
# theirs, or one might send a request while the server closes it.
_IDLE_SECONDS = 75


def run(command: Command) -> None:
  """Runs the mode, until it is told to stop (SIGTERM, SIGINT).

  Args:
    command: the command line.

  Raises:
    InputError: for whatever is wrong with it, the run folder or the journal.
  """
  for library in _LIBRARIES:
    if importlib.util.find_spec(library) is None:
      raise InputError(
        f'--mode=serve: {library} is not installed; allowed: '
        "pip install 'dynllm_jax[serve]'"
      )
  # Of an extra, which the other modes do without.
  import uvicorn

  from dynllm_jax.serving import http_app

  token = checked_token(command.host, os.environ.get(TOKEN, ''))
  listening = _listen(command.host, command.port)
  host, port = listening.getsockname()[:2]
  servers: list[uvicorn.Server] = []

  def stop() -> None:
    servers[0].should_exit = True

  app = http_app.App(
    opening.opened(command, writes=not command.follow, follow=command.follow),
    token=token,
    follows=command.follow,
    hosts=hosts(command.host) if not token else ('*',),
    on_failure=stop,
  )
  config = uvicorn.Config(
    app.application,
    log_level='warning',
    access_log=False,
    server_header=False,
    limit_concurrency=_CONNECTIONS,
    timeout_keep_alive=_IDLE_SECONDS,
    timeout_graceful_shutdown=_STOP_SECONDS,
  )
  server = uvicorn.Server(config)
  servers.append(server)
  shown = f'[{host}]' if ':' in host else host
  say(f'listening at http://{shown}:{port}')
  server.run(sockets=[listening])
  if app.failure is not None:
    raise app.failure


def checked_token(host: str, token: str) -> str:
  """The token, which a server that others reach must have.

  Args:
    host: to listen at.
    token: '' for none.

  Raises:
    InputError: if there is none, or it can be guessed.
  """
  if not token and not is_loopback(host):
    raise InputError(
      f'--host: {host!r} is reached by other machines, and the variable '
      f'{TOKEN} is not set; allowed: 127.0.0.1, or a token in {TOKEN}'
    )
  if token and (len(token) < 16 or not token.isascii() or ' ' in token):
    raise InputError(
      f'{TOKEN}: its value is not allowed; allowed: 16 or more characters of '
      "ASCII without spaces, such as python -c 'import secrets; "
      "print(secrets.token_urlsafe())' makes"
    )
  return token


def is_loopback(host: str) -> bool:
  """Whether an address is reached from this machine alone."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def hosts(host: str) -> tuple[str, ...]:
  """Names by which a server without a token may be called.

  A page of another site may call this machine by a name of its own that it
  lets lead here; it is not to be answered.
  """
  return (host, 'localhost', '127.0.0.1', '[::1]')


def _listen(host: str, port: int) -> socket.socket:
  """A socket that listens.

  Raises:
    InputError: if there can be none.
  """
  try:
    family = socket.getaddrinfo(host, port)[0][0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(2048)
    return listening
  except OSError as error:
    raise InputError(
      f'--host, --port: {host}:{port} cannot be listened at ({error}); '
      'allowed: an address of this machine, and a port that is free'
    ) from error
