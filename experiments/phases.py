"""Where a training step's time goes, phase by phase.

Lookup, update, forward and gradient are compiled as programs of their own that
scan the same batches. The time of a phase is the difference of the times of
two programs. XLA fuses operations across the phases of a whole step, so the
phases are close to what happens in it, not exact.
"""

from collections.abc import Callable
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax.engine import feeds
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.graph import temporal
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import training_loss
from dynllm_jax.objectives.negatives import sample_negatives
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from experiments.slices import Slices

Carry = tuple[Any, Pending]  # the memory of the nodes, events that wait


def milliseconds(
  slices: Slices, model: ml_collections.ConfigDict, repeats: int
) -> dict[str, float]:
  """Times the phases of a step.

  Args:
    slices: a stream system in training; its state is left as it is.
    model: `config.model`.
    repeats: runs of each program, in turn with the others, after one to warm
      up.

  Returns:
    Milliseconds a batch, medians: `lookup` (batch, negatives, neighborhoods
    and the memory they read), `update` (the ordered update of the memory),
    `embed` (the rest of the forward pass, with the loss), `backward`,
    `optimizer` (the rest of the step) and `step`, their sum.
  """
  programs = _programs(slices, model)
  batches, state = slices.batches(), slices.state
  carries = {
    name: jax.tree.map(jnp.copy, (state.memory, state.pending))
    for name in programs
  }
  whole = jax.tree.map(jnp.copy, state)

  seconds: dict[str, list[float]] = {name: [] for name in (*programs, 'step')}
  for _ in range(repeats + 1):
    for name, program in programs.items():
      began = time.perf_counter()
      carries[name], _ = jax.block_until_ready(program(carries[name], batches))
      seconds[name].append(time.perf_counter() - began)
    began = time.perf_counter()
    whole, _ = jax.block_until_ready(
      slices.program(slices.data, whole, batches)
    )
    seconds['step'].append(time.perf_counter() - began)

  ms = {
    name: 1e3 * statistics.median(s[1:]) / len(batches)
    for name, s in seconds.items()
  }
  return {
    'lookup': ms['lookup'],
    'update': ms['update'],
    'embed': ms['forward'] - ms['update'] - ms['lookup'],
    'backward': ms['gradient'] - ms['forward'],
    'optimizer': ms['step'] - ms['gradient'],
    'step': ms['step'],
  }


def _programs(
  slices: Slices, model: ml_collections.ConfigDict
) -> dict[str, Callable[[Carry, PlannedBatch], tuple[Carry, Array]]]:
  """The programs whose times are compared, each a scan over a slice.

  A program hands memory and pending events from batch to batch, and returns a
  number for each batch, so that the compiler cannot leave out its work.
  """
  trainer, data, state = slices.trainer, slices.data, slices.state
  system, inputs, size = trainer.system, data.inputs, data.batch_size

  def batch_of(planned: PlannedBatch) -> tuple[EventBatch, Array, Array]:
    batch, events = feeds.read_batch(data, planned)
    return batch, events, jax.random.fold_in(state.key, planned.start)

  def lookup(carry: Carry, planned: PlannedBatch) -> tuple[Carry, Array]:
    batch, events, key = batch_of(planned)
    looked_up = _reads(
      model,
      trainer.config,
      inputs,
      memory=carry[0],
      batch=batch,
      events=events,
      key=key,
    )
    return carry, looked_up

  def update(carry: Carry, planned: PlannedBatch) -> tuple[Carry, Array]:
    # The pending events move on with the batches; otherwise the compiler could
    # find out that every step sorts the same ones.
    memory, pending = carry
    batch, _, _ = batch_of(planned)
    bound = BoundSystem(system, state.params, inputs)
    memory = bound.update(
      memory, pending_updates.due(pending, planned.size > 0)
    )
    width = pending.user_vectors.shape[0]
    pending = pending_updates.add_pending(
      pending,
      batch,
      pending.user_vectors[:size],
      pending.item_vectors[:size],
      planned.replace(part=planned.part % (width // size)),
    )
    return (memory, pending), jnp.float32(0)

  def loss_of(
    params: Params, memory: Any, pending: Pending, planned: PlannedBatch
  ) -> tuple[Array, Carry]:
    batch, events, key = batch_of(planned)
    bound = BoundSystem(system, params, inputs)
    memory = bound.update(
      memory, pending_updates.due(pending, planned.size > 0)
    )
    tables = bound.propagate(memory, key)
    limits = data.dedup_limits
    embed, visit = dedup.embed_visits(bound, tables, batch, limits.visits)
    loss = training_loss.sampled_loss(
      trainer.config, embed, inputs, batch, events, key, visit, limits.items
    )
    pending = feeds.add_pending(system, pending, batch, loss, planned)
    return loss.total + loss.decay, (memory, pending)

  def forward(carry: Carry, planned: PlannedBatch) -> tuple[Carry, Array]:
    total, carry = loss_of(state.params, *carry, planned)
    return carry, total

  def gradient(carry: Carry, planned: PlannedBatch) -> tuple[Carry, Array]:
    (_, carry), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.params, *carry, planned
    )
    return carry, sum(jnp.sum(x) for x in jax.tree.leaves(grads))

  return {
    name: jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    for name, step in (
      ('lookup', lookup),
      ('update', update),
      ('forward', forward),
      ('gradient', gradient),
    )
  }


def _reads(
  model: ml_collections.ConfigDict,
  config: ml_collections.FrozenConfigDict,
  inputs: Inputs,
  memory: Any,
  batch: EventBatch,
  events: Array,
  key: Array,
) -> Array:
  """A number that depends on all that a batch looks up.

  Args:
    model: `config.model`.
    config: `config.train`.
    inputs: on the device.
    memory: of the nodes.
    batch: the events.
    events: their positions in the log.
    key: of the negatives.
  """
  negatives, allowed = sample_negatives(
    key, inputs, events, (len(events), config.num_negatives), config.negatives
  )
  items = jnp.concatenate([batch.items, negatives.reshape(-1)])
  total = jnp.sum(allowed)
  hops = [
    ('user', batch.users, batch.times, model.num_layers),
    ('item', items, jnp.broadcast_to(batch.times[0], items.shape), 1),
  ]

  while hops:
    side, nodes, times, depth = hops.pop()
    own = getattr(memory, side)
    states = memory_lib.read(own, nodes, jnp.zeros([own.state.shape[-1]]))
    total += jnp.sum(states)
    if depth:
      near = temporal.neighborhood(
        getattr(inputs, f'{side}_graph'), nodes, times, model.num_neighbors
      )
      at = jnp.broadcast_to(times[..., None], near.nodes.shape)
      total += jnp.sum(near.times)
      hops.append(
        ('item' if side == 'user' else 'user', near.nodes, at, depth - 1)
      )
      if depth > 1:  # a deeper layer also embeds the node itself
        hops.append((side, nodes, times, depth - 1))
  return total
