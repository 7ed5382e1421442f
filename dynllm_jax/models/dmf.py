"""DMF: dynamic matrix factorization by a state space (Sun et al. 2012).

"Dynamic matrix factorization: a state space approach" (Sun, Varshney and
Subbian, ICASSP 2012, arXiv 1110.2098). In the paper's equations,
  `x_u(t) = A x_u(t - 1) + w`, `w ~ N(0, Q)`, and `y = v_i x_u(t) + z`,
  `z ~ N(0, R)`:
a user's factors drift, an item's stand still, and a Kalman filter follows the
users (layers/kalman.py).

What differs here:
- Time is continuous: `A = exp(-decay days)`, and `Q` grows with the gap. `A`
  and all covariances are diagonal. The state is a deviation from a learned
  mean, the factors of a user without an event.
- There are purchases and no ratings: every event is a rating of 1, and events
  at one time are seen as one, with the mean of their items' factors.
- `A`, `Q`, `R` and the items' factors are learned from the ranking loss of all
  systems here (SPEC 3.9), through the filter, instead of by expectation
  maximization; nothing is smoothed backwards in time.
"""

import functools

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.bases.stream_network import Widths
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import temporal
from dynllm_jax.graph import update_chains
from dynllm_jax.layers import kalman
from dynllm_jax.layers import memory_update
from dynllm_jax.parallel import owners
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """As many factors as the vectors of other systems have dimensions."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'time_dim': 128,  # of the copy term
      'dropout': 0.0,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
      'item_id_embedding': True,  # v
    }
  )


class DMF(StreamNetwork):
  """The network."""

  @property
  def widths(self) -> Widths:
    dim = self.config.dim
    return Widths(user=2 * dim, item=0, static=dim, vector=dim)

  def setup(self) -> None:
    self.filter = kalman.KalmanFilter(self.config.dim)
    self.weights = self.filter.weights()
    self.share()

  def initial_states(self) -> dict[str, Array]:
    """No deviation, and the stationary variance: f32[2 dim] for 'user'."""
    variance = self.weights['variance']
    return {'user': jnp.concatenate([jnp.zeros_like(variance), variance])}

  def embed(
    self,
    memory: Memory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    deterministic: bool,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """`System.embed`: users as predicted for their times."""
    last = memory_lib.last_times(memory.user, users)
    days = jnp.where(last >= 0, temporal.days_between(user_times, last), 0.0)
    state = kalman.predict(
      self.weights, self.stored(memory, 'user', users), days
    )
    factors = self.static_reader(inputs, items.size, deterministic)(items)
    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=state[:, : self.config.dim] + self.weights['prior'],
      items=items,
      item_time=item_time,
      item_vectors=factors,
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`: runs the filter along each user's events."""
    users = memory.user
    events = pending.events
    prepared = memory_update.Prepared(
      users,
      owners.Events(
        shared=self.weights,
        columns=(
          events.users,
          events.mask,
          events.times,
          memory_lib.last_times(users, events.users),
        ),
        values=(
          self.stored(memory, 'user', events.users),
          self.static_reader(inputs, events.items.size, True)(events.items),
        ),
        num_rows=len(users.time),
      ),
      update_chains.Cell(kalman.kalman_step),
      functools.partial(_start, self.config.update_ties == 'mean'),
    )

    (after,) = memory_update.apply_all(events.limits, prepared)
    return memory.replace(user=after)


def _start(merge_ties: bool, events: owners.Events) -> update_chains.Side:
  """What the updates of one device's events start from."""
  users, mask, times, last_times = events.columns
  states, factors = events.values
  chain = update_chains.make_chains(users, times, mask, last_times, merge_ties)

  # Never negative, so that exp(-k days) stays finite in rows of padding.
  days = jnp.where(
    chain.previous_times >= 0,
    jnp.maximum(temporal.days_between(chain.times, chain.previous_times), 0.0),
    0.0,
  )
  mean_factors = update_chains.mean_by_update(chain, factors)
  return update_chains.Side(
    params=events.shared,
    hidden=update_chains.at_first_event(chain, states),
    inputs=jnp.concatenate([mean_factors, days[:, None]], -1),
    chain=chain,
  )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(DMF(ml_collections.FrozenConfigDict(config)))
