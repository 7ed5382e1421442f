"""The recurrent update of memories after a batch (SPEC 3.10)."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import temporal
from dynllm_jax.graph import update_chains
from dynllm_jax.graph.update_chains import Chains
from dynllm_jax.kernels.chain_kernel import Gated
from dynllm_jax.layers import gru
from dynllm_jax.layers import rnn
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import NodeMemory


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
  """A side's update before its recurrence runs, which both sides do at once."""

  memory: NodeMemory
  cell: update_chains.Cell
  side: update_chains.Side


def apply_all(*prepared: Prepared) -> tuple[NodeMemory, ...]:
  """The memories of sides after a batch's events.

  Args:
    *prepared: the sides.

  Returns:
    Their memories, in this order.
  """
  states = update_chains.run_chains(
    tuple(p.cell for p in prepared), tuple(p.side for p in prepared)
  )

  def write(memory: NodeMemory, chain: Chains, states: Array) -> NodeMemory:
    last = jnp.where(chain.last, chain.nodes, 0)
    return memory_lib.write(memory, last, states, chain.times)

  return tuple(
    write(p.memory, p.side.chain, after) for p, after in zip(prepared, states)
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
      encode: phi, f32[...] days -> f32[..., time_dim].

    Returns:
      What `apply_all` takes.
    """
    chain = update_chains.make_chains(
      nodes,
      events.times,
      events.mask,
      last_times=memory_lib.last_times(memory, nodes),
      merge_ties=self.merge_ties,
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

    weights = self.param(
      self.cell.name,
      lambda key: self.cell.init(key, inputs.shape[-1], self.dim),
    )
    return Prepared(
      memory,
      self.cell.recurrence,
      update_chains.Side(
        params=weights,
        hidden=hidden[chain.first_event],
        inputs=self.cell.project(weights, inputs),
        chain=chain,
      ),
    )
