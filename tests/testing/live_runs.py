"""A run folder of a small shop, for tests of what is served from it."""

import pathlib

import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.storage import locks
from tests.testing import run_folders

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 24, 30, 400
START = 1_600_000_000
KINDS = ('Kitchen', 'Garden', 'Toys')
TITLES = (
  *('Oak chopping board', 'Copper watering can', 'Wooden train'),
  *('Stoneware teapot', 'Seed box with lid', 'Stacking rings'),
  *('Cast iron pan', 'Pruning shears', 'Puzzle of a forest'),
  *('Linen tea towel', 'Rope hammock', 'Kite with a long tail'),
  *('Olive wood spoon', 'Bird feeder', 'Building bricks, 120'),
  *('Glass storage jar', 'Terracotta pot', 'Rag doll Mia'),
  *('Bread tin, 30 cm', 'Garden twine', 'Marble run'),
  *('Pepper mill', 'Solar lantern', 'Card game for six'),
  *('Egg timer', 'Rain gauge', 'Toy kitchen scales'),
  *('Enamel mug', 'Lavender seeds', 'Finger paints'),
)
EVIL_TITLE = '<img src=x onerror="document.title=1"> & more'


def write_log(folder: pathlib.Path) -> None:
  """Writes `events.csv` and `items.csv`; events are hours apart."""
  rng = np.random.default_rng(0)
  users = rng.integers(NUM_USERS, size=NUM_EVENTS)
  items = (users + rng.integers(6, size=NUM_EVENTS) * 5) % NUM_ITEMS
  times = START + 3600 * np.arange(NUM_EVENTS)
  rows = [f'u{u},b{i},{t}' for u, i, t in zip(users, items, times)]
  text = '\n'.join(['user_id,item_id,timestamp', *rows, ''])
  (folder / 'events.csv').write_text(text)

  titles = [*TITLES]
  titles[7] = EVIL_TITLE.replace('"', '""')
  rows = [f'b{n},"{titles[n]}",{KINDS[n % 3]},Klar' for n in range(NUM_ITEMS)]
  text = '\n'.join(['item_id,title,category,brand', *rows, ''])
  (folder / 'items.csv').write_text(text)


def tiny_config(folder: pathlib.Path, system: str):
  """A configuration of the log of `write_log`, at a width that is quick."""
  config = config_lib.default(system)
  config.data.events = str(folder / 'events.csv')
  config.data.items = str(folder / 'items.csv')
  config.data.dir = str(folder / 'data')
  config.data.update({'min_user_items': 2, 'min_item_users': 2})
  config.facets.encoder.dim = 16
  config_lib.set_known(
    config.model,
    dim=8,
    time_dim=6,
    num_neighbors=3,
    distill__top_r=5,
    item_id_embedding=True,
  )
  config_lib.set_train(config, batch_size=64, num_negatives=4)
  config.eval.update({'ks': (5, 10), 'compare': ()})
  return config


def untrained(folder: pathlib.Path, system: str = 'jodie') -> pathlib.Path:
  """The run folder of a model before training; whoever comes first makes it.

  Args:
    folder: which all processes of the tests share.
    system: as after the colon of `--config`.
  """
  folder.mkdir(exist_ok=True)
  run = folder / 'run'
  with locks.lock_file(folder / '.lock', wait=True):
    if not (folder / 'done').exists():
      write_log(folder)
      config = tiny_config(folder, system)
      run_folders.save_untrained(config, str(run))
      (folder / 'done').touch()
  return run
