"""A server of OpenAI's API that is not ours: that of llama-cpp-python."""

import contextlib
import os
import pathlib
import socket
import subprocess
import time
from typing import NamedTuple
import urllib.error
import urllib.request

PYTHON = os.environ.get('DYNLLM_LLAMA_CPP', '')
MODEL = os.environ.get('DYNLLM_GGUF', '')
_SECONDS = 60


class Server(NamedTuple):
  """A running server.

  Attributes:
    url: its address.
    output: the file of what it says; a line a request.
  """

  url: str
  output: pathlib.Path

  def statuses(self) -> list[int]:
    """The HTTP status of each chat so far."""
    lines = self.output.read_text(encoding='utf-8').splitlines()
    chats = [line for line in lines if '/v1/chat/completions HTTP' in line]
    return [int(line.split('HTTP/1.1" ')[1].split()[0]) for line in chats]


@contextlib.contextmanager
def serve(folder: pathlib.Path):
  """Runs a server on loopback.

  Args:
    folder: for its output.

  Yields:
    A `Server`.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  where = ['--host', '127.0.0.1', '--port', str(port)]
  model = ['--model', MODEL, '--n_ctx', '2048', '--verbose', 'false']

  output = folder / 'server.log'
  with (
    open(output, 'wb') as file,
    subprocess.Popen(
      [PYTHON, '-m', 'llama_cpp.server', *where, *model],
      stdout=file,
      stderr=subprocess.STDOUT,
      env={**os.environ, 'PYTHONUNBUFFERED': '1'},
    ) as process,
  ):
    try:
      server = Server(f'http://127.0.0.1:{port}/v1', output)
      _wait(server, process)
      yield server
    finally:
      process.terminate()
      process.wait(_SECONDS)


def _wait(server: Server, process: subprocess.Popen) -> None:
  """Waits until the model is loaded."""
  for _ in range(10 * _SECONDS):
    try:
      urllib.request.urlopen(f'{server.url}/models', timeout=_SECONDS).close()
      return
    except urllib.error.URLError:
      assert process.poll() is None, server.output.read_text(encoding='utf-8')
      time.sleep(0.1)
  raise AssertionError(server.output.read_text(encoding='utf-8'))
