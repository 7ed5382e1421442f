"""Requests of many threads share commits, in order, each with its outcome."""

import threading

import pytest

from dynllm_jax.live.group_commit import GroupCommit


def test_what_waits_goes_together_in_order():
  groups, go, first = [], threading.Event(), threading.Event()

  def commit(requests):
    groups.append(list(requests))
    first.set()
    go.wait(10)
    return [
      ValueError(request) if request < 0 else 2 * request
      for request in requests
    ]

  together = GroupCommit(commit, most=5)
  outcomes = {}

  def do(request, size):
    try:
      outcomes[request] = together.do(request, size)
    except ValueError as error:
      outcomes[request] = str(error)

  threads = []
  for request, size in ((1, 1), (2, 3), (-3, 2), (4, 9), (5, 1)):
    threads.append(threading.Thread(target=do, args=(request, size)))
    threads[-1].start()
    first.wait(10)
    while not groups or len(together._queue) < len(threads) - 1:
      pass
  go.set()
  for thread in threads:
    thread.join(10)
  assert groups == [[1], [2, -3], [4], [5]]
  assert outcomes == {1: 2, 2: 4, -3: '-3', 4: 8, 5: 10}


def test_an_error_of_the_commit_reaches_all_of_it():
  def commit(requests):
    raise RuntimeError('the disk is full')

  together = GroupCommit(commit, most=5)
  for _ in range(2):
    with pytest.raises(RuntimeError, match='full'):
      together.do('x')


def test_a_pause_comes_in_its_turn():
  done, go, first = [], threading.Event(), threading.Event()

  def commit(requests):
    first.set()
    go.wait(10)
    done.extend(requests)
    return requests

  together = GroupCommit(commit, most=5)

  def pause():
    with together.paused():
      done.append('pause')

  work = [lambda: together.do(1), lambda: together.do(2), pause]
  work += [lambda: together.do(3)]
  threads = []
  for target in work:
    threads.append(threading.Thread(target=target))
    threads[-1].start()
    first.wait(10)
    while len(together._queue) < len(threads) - 1:
      pass
  go.set()
  for thread in threads:
    thread.join(10)
  assert done == [1, 2, 'pause', 3]
  together.do(4)
