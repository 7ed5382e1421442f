"""One process at a time computes what a store lacks."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib

from dynllm_jax.storage import bucket_sync
from dynllm_jax.storage import locks
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError


@contextlib.contextmanager
def hold(store: Store, report: Callable[[str], None]) -> Iterator[None]:
  """Waits until no other process fills a store, and keeps others waiting.

  Two processes that fill a store at once would compute, and pay for, the same
  rows. On entry the store knows all rows that another process has appended.
  The system frees the lock of a process that dies. Reading and appending need
  no lock of this kind.

  Args:
    store: the store. If its folder is the copy of a bucket's, the bucket's
      rows are fetched, and rows appended within the block are sent to it.
    report: takes a line of text if there is another process to wait for.

  Raises:
    InputError: if the store's folder cannot be written or is damaged, or the
      bucket cannot be used.
  """
  path = store.folder / 'turn'
  with contextlib.ExitStack() as stack:
    try:
      if not stack.enter_context(locks.lock_file(path, wait=False)):
        report(f'waiting for another process that fills {store.folder}')
        stack.enter_context(locks.lock_file(path))
    except OSError as error:
      raise InputError(
        f'{store.folder}: cannot be written ({error})'
      ) from error

    store.refresh()
    stack.enter_context(bucket_sync.synced(store))
    yield
