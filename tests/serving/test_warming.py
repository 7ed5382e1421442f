"""Once a server is warm, no request waits for a program."""

import asyncio

import jax

from dynllm_jax import Recommender
from dynllm_jax.live import programs
from dynllm_jax.serving import service as service_lib
from dynllm_jax.serving.service import Service
from dynllm_jax.serving.service import Wanted
from tests.testing import kept_runs

KINDS = (
  {},
  {'k': 15},
  {'exclude_seen': True},
  {'exact': True},
  {'candidates': ('i1', 'i2')},
)


def test_nothing_is_compiled_once_it_is_warm(tmp_path, monkeypatch):
  # Fewer sizes, of which each is compiled.
  monkeypatch.setattr(programs, 'SIZES', (1, 8, 64))
  monkeypatch.setattr(programs, 'MAX_BATCH', 64)
  monkeypatch.setattr(programs, 'MAX_WRITES', 512)
  monkeypatch.setattr(service_lib, '_USERS', (1, 8))
  workdir = kept_runs.make(tmp_path, 'transitions')
  shop = Recommender.restore(workdir, journal=None)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **about: (
      compiled.append(about)
      if name == '/jax/core/compile/backend_compile_duration'
      else None
    )
  )
  users = [*shop.users, 'nobody']

  async def ask():
    service = Service(shop)
    service.warm_up()
    assert service.is_warm and compiled
    compiled.clear()
    time = shop.newest_time
    for size in (1, 2, 9, 1):
      # Of one time, so that they wait together; then of times of their own.
      for step in (0, 0, 1):
        times = [time := time + step for _ in range(size)]
        events = [
          {'user': f'u{n % 12 + 1}', 'item': f'i{n % 15 + 1}', 'time': at}
          for n, at in enumerate(times)
        ]
        await service.observe(events)
      for kind in KINDS:
        wanted = [Wanted(users[n % 13], **kind) for n in range(min(size, 8))]
        found = await service.recommend_all(wanted)
        assert len(found) == len(wanted)
    await service.observe([{'user': 'new', 'item': 'new', 'time': time}])
    session = (('i1', time),)
    await service.recommend_all([Wanted('', session=session)])
    await service.add_items([{'item': 'i3', 'title': 'another title'}])
    await service.other(lambda: shop.explain('u1', 'i1'))
    await service.close()

  asyncio.run(ask())
  assert not compiled
