"""The recurrent update of one side's memory (SPEC 3.10)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax import graph
from dynllm_jax import memory as memory_lib
from dynllm_jax.layers import gru
from dynllm_jax.types import Array
from dynllm_jax.types import NodeMemory


class MemoryUpdate(nn.Module):
  """`h(t^+) = GRU(h, message || phi(t - t'))` in the order of events.

  Attributes:
    dim: width of the memory.
    merge_ties: whether a node's events of one time form one update, its
      message the mean of theirs.
  """
  dim: int
  merge_ties: bool = True

  @nn.compact
  def __call__(
      self, memory: NodeMemory, nodes: Array, times: Array, mask: Array,
      hidden: Array, messages: Array, encode) -> NodeMemory:
    """Applies a batch's events.

    Args:
      memory: this side.
      nodes: i32[events], this side's nodes.
      times: i32[events], seconds, ascending.
      mask: bool[events].
      hidden: f32[events, dim], the hidden state of a node's first update, as
        its first event has it.
      messages: f32[events, message_dim].
      encode: phi, f32[...] days -> f32[..., time_dim].

    Returns:
      The memory after the events.
    """
    chain = memory_lib.chains(
        nodes, times, mask, memory.time[nodes], self.merge_ties)
    seen = chain.previous_times >= 0
    gap = graph.days_between(chain.times, chain.previous_times)
    inputs = jnp.concatenate([
        memory_lib.mean_by_update(chain, messages),
        encode(jnp.where(seen, gap, 0.0))], axis=-1)
    weights = self.param(
        'gru', lambda key: gru.init_gru(key, inputs.shape[-1], self.dim))
    states = memory_lib.run_chains(
        gru.normalized_gru, weights, hidden[chain.first_event],
        gru.project_inputs(weights, inputs), chain)
    return memory_lib.write(
        memory, jnp.where(chain.last, chain.nodes, 0), states, chain.times)
