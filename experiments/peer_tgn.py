"""Trains torch_geometric's TGN, slice by slice, as its documentation does.

It is run by the Python that has torch_geometric, and imports nothing of
dynllm_jax.

    peer_tgn.py LOG.npz BATCH NEIGHBORS WIDTH SLICE_EVENTS DEVICE

It writes its versions. Then, for each line that it reads, it trains on the next
slice and writes the seconds that took. All parts are the package's own: memory,
neighbor loader, attention with edge features, and a link predictor of two
layers. Dimensions, batch, neighbors, dropout and the one negative of an event
are those of the system that it is compared with.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
import sys
import time

import numpy as np
import torch
import torch_geometric
from torch_geometric.nn import TGNMemory
from torch_geometric.nn import TransformerConv
from torch_geometric.nn.models import tgn


class Attention(torch.nn.Module):
  """Attention over the latest neighbors, with the time as edge feature."""

  def __init__(self, dim: int, encode: Callable[[torch.Tensor], torch.Tensor]):
    super().__init__()
    self.encode = encode
    self.conv = TransformerConv(
      dim, dim // 2, heads=2, dropout=0.1, edge_dim=dim + 1
    )

  def forward(
    self,
    state: torch.Tensor,
    last: torch.Tensor,
    edges: torch.Tensor,
    times: torch.Tensor,
    message: torch.Tensor,
  ) -> torch.Tensor:
    gap = (last[edges[0]] - times).to(state.dtype)
    features = torch.cat([self.encode(gap), message], -1)
    return self.conv(state, edges, features)


class LinkPredictor(torch.nn.Module):
  """A score of a pair of embeddings."""

  def __init__(self, dim: int):
    super().__init__()
    self.source = torch.nn.Linear(dim, dim)
    self.target = torch.nn.Linear(dim, dim)
    self.score = torch.nn.Linear(dim, 1)

  def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return self.score((self.source(source) + self.target(target)).relu())


class Training:
  """A log and the model that is trained on it.

  Args:
    log: users, items and times, each i64[events].
    near: neighbors of a node.
    dim: of memory, time encoding and embeddings.
    device: of all tensors, `cpu` or `cuda`.
  """

  def __init__(
    self, log: Mapping[str, np.ndarray], near: int, dim: int, device: str
  ):
    first_item = int(log['users'].max()) + 1
    self.users = torch.from_numpy(log['users'].astype(np.int64)).to(device)
    self.items = first_item + torch.from_numpy(
      log['items'].astype(np.int64)
    ).to(device)
    self.times = torch.from_numpy(log['times'].astype(np.int64)).to(device)
    self.message = torch.zeros(len(self.users), 1, device=device)
    self.first_item, self.nodes = first_item, int(self.items.max()) + 1

    self.memory = TGNMemory(
      self.nodes,
      1,
      dim,
      dim,
      tgn.IdentityMessage(1, dim, dim),
      tgn.LastAggregator(),
    ).to(device)
    self.memory.reset_state()  # Its messages were kept on the CPU.
    self.attention = Attention(dim, self.memory.time_enc).to(device)
    self.score = LinkPredictor(dim).to(device)
    self.loader = tgn.LastNeighborLoader(self.nodes, size=near, device=device)
    self.place = torch.empty(self.nodes, dtype=torch.long, device=device)

    # A set, as memory and attention share the time encoding.
    self.optimizer = torch.optim.Adam(
      {
        p
        for part in (self.memory, self.attention, self.score)
        for p in part.parameters()
      },
      lr=1e-3,
    )
    self.loss = torch.nn.BCEWithLogitsLoss()

  def reset(self) -> None:
    """Goes back to before the first event, as at the start of an epoch."""
    self.memory.reset_state()
    self.loader.reset_state()

  def step(self, low: int, high: int) -> None:
    """Trains on a batch of events."""
    at = slice(low, high)
    users, items, times, message = (
      self.users[at],
      self.items[at],
      self.times[at],
      self.message[at],
    )

    others = torch.randint(
      self.first_item, self.nodes, (high - low,), device=users.device
    )
    self.optimizer.zero_grad()
    known, edges, events = self.loader(
      torch.cat([users, items, others]).unique()
    )
    self.place[known] = torch.arange(len(known), device=known.device)
    state, last = self.memory(known)
    rows = self.attention(
      state, last, edges, self.times[events], self.message[events]
    )
    of = lambda nodes: rows[self.place[nodes]]
    right = self.score(of(users), of(items))
    wrong = self.score(of(users), of(others))
    loss = self.loss(right, torch.ones_like(right))
    loss += self.loss(wrong, torch.zeros_like(wrong))

    # Only events before the batch were known to what was scored.
    self.memory.update_state(users, items, times, message)
    self.loader.insert(users, items)
    loss.backward()
    self.optimizer.step()
    self.memory.detach()


def main() -> None:
  """Reads the arguments and trains for as long as lines come in."""
  batch, near, dim, slice_events = map(int, sys.argv[2:6])
  device = sys.argv[6]
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  training = Training(np.load(sys.argv[1]), near, dim, device)
  print(
    f'torch_geometric {torch_geometric.__version__}, torch {torch.__version__}',
    flush=True,
  )
  at = 0
  for _ in sys.stdin:
    if at + slice_events > len(training.users):
      training.reset()
      at = 0
    stop = at + slice_events
    began = time.perf_counter()
    for low in range(at, stop, batch):
      training.step(low, min(low + batch, stop))
    if device != 'cpu':
      torch.cuda.synchronize()
    print(time.perf_counter() - began, flush=True)
    at = stop


if __name__ == '__main__':
  main()
