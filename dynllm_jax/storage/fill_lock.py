"""One process at a time computes what a store lacks."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl

from dynllm_jax.storage import bucket_sync
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError


@contextlib.contextmanager
def hold(store: Store, report: Callable[[str], None]) -> Iterator[None]:
  """Waits until no other process fills a store, and holds others off.

  Two processes that fill it at once would compute, and pay for, the same.
  What the other has appended is known when this one's turn comes. The system
  ends the turn of a process that dies. Reading and appending need none.

  Args:
    store: the store; with the rows that its folder has in a bucket, and what
      is appended meanwhile is put there as well.
    report: takes a line if there is another process to wait for.

  Raises:
    InputError: if the store's folder cannot be written or is damaged, or the
      bucket cannot be used.
  """
  try:
    file = open(store.folder / 'turn', 'ab')
  except OSError as error:
    raise InputError(f'{store.folder}: cannot be written ({error})') from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      report(f'waiting for another process that fills {store.folder}')
      fcntl.flock(file, fcntl.LOCK_EX)
    store.refresh()
    with bucket_sync.synced(store):
      yield
