"""A local server that answers, stalls, fails and lies as an endpoint may."""

import contextlib
import http.server
import json
import threading
import time

import ml_collections


def settings(server, **fields):
  """The fields that `endpoint.Endpoint` reads, fit for tests."""
  return ml_collections.ConfigDict(
    {
      'model': 'm',
      'base_url': server.url,
      'concurrency': 4,
      'timeout_s': 5.0,
      'num_retries': 3,
      'max_calls': 0,
      'max_tokens': 0,
      **fields,
    }
  )


def embeddings(vectors, tokens=5):
  """The answer to a call for embeddings.

  Args:
    vectors: one for each text of the call.
    tokens: what the call has cost.
  """
  return {
    'object': 'list',
    'model': 'm',
    'data': [
      {'object': 'embedding', 'index': i, 'embedding': vector}
      for i, vector in enumerate(vectors)
    ],
    'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
  }


def completion(text):
  """The answer to a call for a chat completion, of 120 tokens in all."""
  return {
    'id': 'x',
    'object': 'chat.completion',
    'created': 0,
    'model': 'm',
    'choices': [
      {
        'index': 0,
        'finish_reason': 'stop',
        'message': {'role': 'assistant', 'content': text},
      }
    ],
    'usage': {
      'prompt_tokens': 100,
      'completion_tokens': 20,
      'total_tokens': 120,
    },
  }


@contextlib.contextmanager
def serve(answer):
  """Runs a server.

  Args:
    answer: from the request's JSON and the number of the call, from 0, to
      `(status, body)` or `(status, body, headers)`: a body of bytes is sent as
      it is, anything else as JSON; status 'drop' closes the connection,
      'stall' first waits `body` seconds.

  Yields:
    The server; `.calls` are the requests so far, `.keys` their keys, `.most`
    how many were in flight at once, `.url` its address.
  """

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      server = self.server
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      with server.lock:
        number = len(server.calls)
        server.calls.append(body)
        server.keys.append(self.headers['Authorization'])
        server.now += 1
        server.most = max(server.most, server.now)
      try:
        self.reply(*answer(body, number))
      finally:
        with server.lock:
          server.now -= 1

    def reply(self, status, body, headers=()):
      if status == 'stall':
        time.sleep(body)
        status = 'drop'
      if status == 'drop':
        self.close_connection = True
        self.connection.close()
        return
      if not isinstance(body, bytes):
        body = json.dumps(body).encode()
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(body)))
      for name, value in dict(headers).items():
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *args):
      pass

  class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
      pass  # a client that gave up

  server = Server(('127.0.0.1', 0), Handler)
  server.calls, server.keys, server.most, server.now = [], [], 0, 0
  server.lock = threading.Lock()
  server.url = f'http://127.0.0.1:{server.server_port}/v1'
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
