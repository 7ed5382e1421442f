"""Trains a static graph system of RecBole, slice by slice.

It is run by the Python that has recbole, and imports nothing of dynllm_jax.

    peer_recbole.py LOG.npz MODEL BATCH WIDTH LAYERS SLICE_EVENTS

It writes its versions. Then, for each line that it reads, it trains on the next
batches and writes the seconds that took. Data set, model, loss and the
sampling of one negative for each event are the package's own.
"""

from collections.abc import Mapping
import itertools
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import recbole
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data import data_preparation
from recbole.utils import get_model
import torch


def prepare(
  log: Mapping[str, np.ndarray],
  folder: str,
  model: str,
  *,
  batch: int,
  dim: int,
  layers: int,
) -> tuple[Any, torch.nn.Module]:
  """RecBole's batches of a log, and its model.

  Args:
    log: users and items, each i64[events].
    folder: for the file that RecBole reads.
    model: its name in RecBole.
    batch: events of a batch.
    dim: width of an embedding.
    layers: how many the model has.
  """
  os.makedirs(os.path.join(folder, 'log'))
  with open(
    os.path.join(folder, 'log', 'log.inter'), 'w', encoding='utf-8'
  ) as file:
    file.write('user_id:token\titem_id:token\n')
    file.writelines(
      f'{user}\t{item}\n' for user, item in zip(log['users'], log['items'])
    )

  # RecBole also reads options from the command line, where ours are none.
  sys.argv = sys.argv[:1]
  config = Config(
    model=model,
    dataset='log',
    config_dict={
      'data_path': folder,
      'checkpoint_dir': folder,
      'use_gpu': False,
      'load_col': {'inter': ['user_id', 'item_id']},
      'show_progress': False,
      'embedding_size': dim,
      'n_layers': layers,
      'hidden_size_list': [dim] * layers,
      'train_batch_size': batch,
      'learning_rate': 1e-3,
      'eval_args': {
        'split': {'RS': [1, 0, 0]},
        'order': 'RO',
        'group_by': None,
        'mode': 'full',
      },
    },
  )

  dataset = create_dataset(config)
  batches, *_ = data_preparation(config, dataset)
  network = get_model(model)(config, batches.dataset)
  return batches, network


def main() -> None:
  """Reads the arguments and trains for as long as lines come in."""
  path, model, *numbers = sys.argv[1:]
  batch, dim, layers, slice_events = map(int, numbers)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  with tempfile.TemporaryDirectory() as folder:
    batches, network = prepare(
      np.load(path), folder, model, batch=batch, dim=dim, layers=layers
    )

  network.train()
  optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
  stream = itertools.chain.from_iterable(itertools.repeat(batches))
  print(f'recbole {recbole.__version__}, torch {torch.__version__}', flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    for interaction in itertools.islice(stream, slice_events // batch):
      optimizer.zero_grad()
      network.calculate_loss(interaction).backward()
      optimizer.step()
    print(time.perf_counter() - began, flush=True)


if __name__ == '__main__':
  main()
