"""The recurrent update of memories after a batch (SPEC 3.10)."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import temporal
from dynllm_jax.graph import update_chains
from dynllm_jax.kernels.chain_kernel import Gated
from dynllm_jax.layers import gru
from dynllm_jax.layers import rnn
from dynllm_jax.parallel import owners
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import NodeMemory
from dynllm_jax.types import OwnLimits


class Cell(NamedTuple):
  """A recurrent cell in the form that `update_chains.run_chains` takes.

  Attributes:
    name: of its weights among the parameters.
    init: `(key, input_dim, dim) -> params`.
    project: `(params, inputs) -> projected`, taken once for all steps.
    recurrence: `(params, hidden, projected) -> hidden`, in both forms.
  """

  name: str
  init: Callable[..., Any]
  project: Callable[..., Array]
  recurrence: update_chains.Cell


NORMALIZED_GRU = Cell(
  'gru',
  gru.init_gru,
  gru.project_inputs,
  update_chains.Cell(
    gru.normalized_gru, Gated(gru.weights, gru.normalized_combine)
  ),
)
GRU = Cell(
  'gru',
  gru.init_gru,
  gru.project_inputs,
  update_chains.Cell(gru.gru, Gated(gru.weights, gru.combine)),
)
RNN = Cell(
  'rnn',
  rnn.init_rnn,
  rnn.project_inputs,
  update_chains.Cell(rnn.rnn, Gated(rnn.weights, rnn.combine)),
)


class Prepared(NamedTuple):
  """A side's update before it is made, which is done for both sides at once.

  Attributes:
    memory: of the side.
    events: of a batch, for the nodes of the side.
    cell: of the recurrence.
    start: what the updates of one device's events start from.
  """

  memory: NodeMemory
  events: owners.Events
  cell: update_chains.Cell
  start: Callable[[owners.Events], update_chains.Side]


def apply_all(limits: OwnLimits, *prepared: Prepared) -> tuple[NodeMemory, ...]:
  """The memories of sides after a batch's events.

  Args:
    limits: how much falls to one device.
    *prepared: the sides.

  Returns:
    Their memories, in this order.
  """

  def after(sides: tuple[owners.Events, ...]) -> tuple[owners.Written, ...]:
    starts = tuple(p.start(events) for p, events in zip(prepared, sides))
    states = update_chains.run_chains(tuple(p.cell for p in prepared), starts)
    return tuple(
      owners.Written(
        nodes=jnp.where(start.chain.last, start.chain.nodes, 0),
        states=rows,
        times=start.chain.times,
      )
      for start, rows in zip(starts, states)
    )

  written = owners.apply_own(after, tuple(p.events for p in prepared), limits)
  return tuple(
    memory_lib.write(p.memory, *rows) for p, rows in zip(prepared, written)
  )


class MemoryUpdate(nn.Module):
  """`h(t^+) = cell(h, message || phi(t - t'))` in the order of events.

  Attributes:
    dim: width of the memory.
    merge_ties: whether a node's events of one time form one update, its
      message the mean of theirs.
    cell: the recurrent cell.
  """

  dim: int
  merge_ties: bool = True
  cell: Cell = NORMALIZED_GRU

  @nn.compact
  def __call__(
    self,
    memory: NodeMemory,
    nodes: Array,
    events: EventBatch,
    hidden: Array,
    messages: Array,
    encode: Callable[[Array], Array],
  ) -> Prepared:
    """Prepares the update by a batch's events.

    Args:
      memory: this side.
      nodes: i32[events], this side's nodes of the events.
      events: of the batch, their times ascending.
      hidden: f32[events, dim], the hidden state of a node's first update, as
        its first event has it.
      messages: f32[events, message_dim].
      encode: phi, f32[...] days -> f32[..., time_dim]; on a mesh a pytree.

    Returns:
      What `apply_all` takes.
    """
    width = messages.shape[-1] + encode(jnp.zeros([])).shape[-1]
    weights = self.param(
      self.cell.name, lambda key: self.cell.init(key, width, self.dim)
    )

    return Prepared(
      memory,
      owners.Events(
        shared=(weights, encode),
        columns=(
          nodes,
          events.mask,
          events.times,
          memory_lib.last_times(memory, nodes),
        ),
        values=(hidden, messages),
        num_rows=len(memory.time),
      ),
      self.cell.recurrence,
      self._start,
    )

  def _start(self, events: owners.Events) -> update_chains.Side:
    """What the updates of one device's events start from."""
    (weights, encode), (hidden, messages) = events.shared, events.values
    nodes, mask, times, last_times = events.columns
    chain = update_chains.make_chains(
      nodes, times, mask, last_times, merge_ties=self.merge_ties
    )

    # What an update's cell reads: the mean message, and the time since the
    # node's update before it.
    seen = chain.previous_times >= 0
    gap = temporal.days_between(chain.times, chain.previous_times)
    inputs = jnp.concatenate(
      [
        update_chains.mean_by_update(chain, messages),
        encode(jnp.where(seen, gap, 0.0)),
      ],
      axis=-1,
    )
    return update_chains.Side(
      params=weights,
      hidden=update_chains.at_first_event(chain, hidden),
      inputs=self.cell.project(weights, inputs),
      chain=chain,
    )
