"""Ctrl-C, also while XLA compiles.

Python notices an interrupt when the program comes back to it, and a compilation
comes back after a minute. A thread hears of the signal at once, and ends the
process where the program does not end by itself: that loses nothing, since all
files are written whole or not at all.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import socket
import sys
import threading

STATUS = 130  # of a process that ends by Ctrl-C, as shells have it

_PATIENCE_SECONDS = 1.0


@contextlib.contextmanager
def end_in_one_line(line: str) -> Iterator[None]:
  """Within the block Ctrl-C ends the process in one line on stderr.

  Only in the main thread, which alone may watch for signals; elsewhere this
  does nothing.

  Args:
    line: what is said, such as how to go on.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  heard, tell = socket.socketpair()
  tell.setblocking(False)
  once = threading.Lock()

  def end() -> None:
    with once:
      print(f'\n{line}', file=sys.stderr, flush=True)
      sys.stdout.flush()
      os._exit(STATUS)

  def watch() -> None:
    while number := heard.recv(1):
      if number[0] == signal.SIGINT and not left.wait(_PATIENCE_SECONDS):
        end()
    heard.close()

  left = threading.Event()
  before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  except KeyboardInterrupt:
    # Of several processes no orderly end is possible: others would wait.
    end()
  finally:
    left.set()
    signal.set_wakeup_fd(before)
    tell.close()
