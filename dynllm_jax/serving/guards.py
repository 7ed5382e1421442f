"""What every HTTP request passes first: a bearer token, a limited body."""

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import MutableMapping
import hmac
import json
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# What answers without a token: it has no data of anybody.
_OPEN = ('/', '/health/live', '/health/ready')
_BODY_SECONDS = 30.0
_READ_ON = 8  # times the limit that is read of a body that is too large


class BearerToken:
  """Refuses requests without the token, with 401.

  Args:
    application: what is guarded.
    token: in `Authorization: Bearer TOKEN`; compared in constant time.
  """

  def __init__(self, application: Application, token: str) -> None:
    self._application = application
    self._wanted = f'Bearer {token}'.encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes on a request that has the token."""
    given = dict(scope.get('headers', ())).get(b'authorization', b'')
    if (
      scope['type'] != 'http'
      or scope['path'] in _OPEN
      or hmac.compare_digest(given, self._wanted)
    ):
      await self._application(scope, receive, send)
      return
    await refuse(
      send,
      401,
      'the token is missing or wrong; allowed: "Authorization: Bearer TOKEN", '
      'the token that the server was started with',
      [(b'www-authenticate', b'Bearer')],
    )


class LimitedBody:
  """Reads a request's body, and refuses one that is too large, with 413.

  A body has to be there within 30 seconds (408) and be declared as JSON (415):
  a page of another site cannot send that without being allowed to.

  Args:
    application: what is guarded.
    limit: bytes.
  """

  def __init__(self, application: Application, limit: int) -> None:
    self._application, self._limit = application, limit

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes on a request with a body that is not too large."""
    if scope['type'] != 'http':
      await self._application(scope, receive, send)
      return
    headers = dict(scope['headers'])
    try:
      async with asyncio.timeout(_BODY_SECONDS):
        body = await self._read(receive)
    except OverflowError:
      await refuse(
        send,
        413,
        f'the body is too large; allowed: {self._limit:,} bytes',
        [(b'connection', b'close')],
      )
      return
    except TimeoutError:
      await refuse(send, 408, 'the body did not come within 30 seconds')
      return
    if body is None:  # the client has gone
      return

    kind = headers.get(b'content-type', b'').partition(b';')[0].strip().lower()
    if body and kind != b'application/json':
      await refuse(
        send, 415, 'the body must be "Content-Type: application/json"'
      )
      return
    await self._application(scope, _replayed(body, receive), send)

  async def _read(self, receive: Receive) -> bytes | None:
    """The whole body; None where the client goes away before its end.

    Of one that is too large no more is kept. It is read on for a while, since
    a client that is still sending may not see an answer.

    Raises:
      OverflowError: if it is too large.
    """
    parts, size, more = [], 0, True
    while more and size <= _READ_ON * self._limit:
      message = await receive()
      if message['type'] == 'http.disconnect':
        return None
      part = message.get('body', b'')
      size += len(part)
      if size <= self._limit:
        parts.append(part)
      else:
        parts.clear()
      more = message.get('more_body', False)
    if size > self._limit:
      raise OverflowError
    return b''.join(parts)


async def refuse(
  send: Send,
  status: int,
  error: str,
  headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
  """Answers a request with an error."""
  body = json.dumps({'error': error}).encode()
  start: dict[str, Any] = {
    'type': 'http.response.start',
    'status': status,
    'headers': [
      (b'content-type', b'application/json'),
      (b'content-length', str(len(body)).encode()),
      *(headers or []),
    ],
  }
  await send(start)
  await send({'type': 'http.response.body', 'body': body})


def _replayed(body: bytes, receive: Receive) -> Receive:
  """A body that was read already, and after it whatever comes."""
  messages: list[dict[str, Any]] = [
    {'type': 'http.request', 'body': body, 'more_body': False}
  ]

  async def next_message() -> MutableMapping[str, Any]:
    return messages.pop() if messages else await receive()

  return next_message
