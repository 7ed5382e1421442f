"""The recurrent update of one side's memory (SPEC 3.10)."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import temporal
from dynllm_jax.graph import update_chains
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
    step: `(params, hidden, projected) -> hidden`.
  """

  name: str
  init: Callable[..., Any]
  project: Callable[..., Array]
  step: Callable[..., Array]


NORMALIZED_GRU = Cell(
  'gru', gru.init_gru, gru.project_inputs, gru.normalized_gru
)
GRU = Cell('gru', gru.init_gru, gru.project_inputs, gru.gru)
RNN = Cell('rnn', rnn.init_rnn, rnn.project_inputs, rnn.rnn)


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
  ) -> NodeMemory:
    """Applies a batch's events.

    Args:
      memory: this side.
      nodes: i32[events], this side's nodes of the events.
      events: of the batch, their times ascending.
      hidden: f32[events, dim], the hidden state of a node's first update, as
        its first event has it.
      messages: f32[events, message_dim].
      encode: phi, f32[...] days -> f32[..., time_dim].

    Returns:
      The memory after the events.
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
    states = update_chains.run_chains(
      self.cell.step,
      weights,
      hidden=hidden[chain.first_event],
      inputs=self.cell.project(weights, inputs),
      chain=chain,
    )
    return memory_lib.write(
      memory, jnp.where(chain.last, chain.nodes, 0), states, chain.times
    )
