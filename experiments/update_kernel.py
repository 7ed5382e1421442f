"""The ordered update on a GPU: the kernel against the loop that it replaces.

    python -m experiments.update_kernel    # 40 seconds on a GPU
    python -m experiments.update_kernel --interpret --batches=64    # anywhere

Prints a line for each batch size and precision of products:

    events=N longest=L precision=P kernel_ms=MS loop_ms=MS states=E gradients=E

`longest` is the most updates of a node. Milliseconds are of states and
gradients together, medians. `states` and `gradients` are the largest
difference between both ways, over the largest value of an array. The script
fails where one is above `--tolerance` at the precision `highest`, or where two
runs of the kernel differ in a bit.
"""

from collections.abc import Callable
import functools
import statistics
import time
from typing import Any
from unittest import mock

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.graph import update_chains
from dynllm_jax.kernels import chain_kernel
from dynllm_jax.layers import memory_update
from dynllm_jax.types import Array

_BATCHES = flags.DEFINE_list('batches', ['2048', '65536'], 'Events of a batch.')
_RUNS = flags.DEFINE_integer('runs', 20, 'Timed runs of each way.')
_TOLERANCE = flags.DEFINE_float('tolerance', 1e-4, 'Largest difference.')
_INTERPRET = flags.DEFINE_bool('interpret', False, 'Without a GPU, slowly.')

_NODES = 10_000
_WIDTHS = (128, 64)  # DynLLM's users and items

Columns = tuple[Array, Array]  # nodes and times of one side
Learned = tuple[Any, Array, Array]  # parameters, hidden states, inputs


def events(size: int, seed: int) -> Columns:
  """Nodes and times of a batch; a node's share falls with its rank."""
  rng = np.random.default_rng(seed)
  shares = 1 / (10 + np.arange(_NODES))
  nodes = 1 + rng.choice(_NODES, size, p=shares / shares.sum())
  return jnp.asarray(nodes, jnp.int32), jnp.arange(size, dtype=jnp.int32)


def learned(size: int, width: int, seed: int) -> Learned:
  """What an update starts from, drawn."""
  keys = jax.random.split(jax.random.key(seed), 3)
  # A normalized cell with drawn weights is chaotic: along hundreds of steps a
  # last bit grows to a whole number, and nothing could be compared.
  params = memory_update.GRU.init(keys[0], 1, width)
  hidden = jax.random.normal(keys[1], (size, width))
  return params, hidden, jax.random.normal(keys[2], (size, 3 * width))


def states_and_gradients(
  columns: tuple[Columns, ...], values: tuple[Learned, ...]
) -> tuple[tuple[Array, ...], Any]:
  """States of both sides, and gradients of a sum to which all contribute."""

  def total(values: tuple[Learned, ...]) -> tuple[Array, tuple[Array, ...]]:
    sides = []
    for (nodes, times), (params, hidden, inputs) in zip(columns, values):
      chain = update_chains.make_chains(
        nodes, times, nodes > 0, jnp.full_like(times, -1)
      )
      sides.append(update_chains.Side(params, hidden, inputs, chain))
    cell = memory_update.GRU.recurrence
    states = update_chains.run_chains((cell,) * len(sides), tuple(sides))
    weights = 1 + jnp.arange(len(states[0]))[:, None] % 7
    return sum(jnp.sum(jnp.cos(weights * x)) for x in states), states

  gradients, states = jax.grad(total, has_aux=True)(values)
  return states, gradients


def compiled(kernel: bool, args: tuple[Any, ...]) -> Callable[..., Any]:
  """The program of one way."""
  patches = [mock.patch.object(update_chains, 'KERNEL', kernel)]
  if _INTERPRET.value and kernel:
    interpreted = {
      way: functools.partial(getattr(chain_kernel, way), interpret=True)
      for way in ('forward', 'backward')
    }
    patches += [
      mock.patch.multiple(chain_kernel, **interpreted),
      mock.patch.object(
        jax.lax, 'platform_dependent', lambda *args, cuda, **_: cuda(*args)
      ),
    ]
  for patch in patches:
    patch.start()
  try:
    # A function of its own: of one that it knows JAX has the trace.
    program = jax.jit(lambda *args: states_and_gradients(*args))
    return program.lower(*args).compile()
  finally:
    for patch in patches:
      patch.stop()


def milliseconds(program: Callable[..., Any], args: tuple[Any, ...]) -> float:
  """The median of some runs, after one to warm up."""
  spent = []
  for _ in range(1 + _RUNS.value):
    began = time.perf_counter()
    jax.block_until_ready(program(*args))
    spent.append(1000 * (time.perf_counter() - began))
  return statistics.median(spent[1:])


def difference(found: Any, expected: Any) -> float:
  """The largest difference of an array, over its largest value."""
  return max(
    float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
    for a, b in zip(
      *(map(np.asarray, jax.tree.leaves(x)) for x in (found, expected))
    )
  )


def compare(size: int, precision: str) -> bool:
  """Compares both ways on one batch, and prints; whether they agree."""
  columns = tuple(events(size, seed) for seed in range(len(_WIDTHS)))
  values = tuple(learned(size, w, n) for n, w in enumerate(_WIDTHS))
  args = columns, values
  with jax.default_matmul_precision(precision):
    kernel, loop = (compiled(way, args) for way in (True, False))

  found, expected = kernel(*args), loop(*args)
  again = kernel(*args)
  same = all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again))
  )
  errors = [difference(*pair) for pair in zip(found, expected)]
  longest = max(int(np.bincount(nodes).max()) for nodes, _ in columns)
  print(
    f'events={size} longest={longest} precision={precision} '
    f'kernel_ms={milliseconds(kernel, args):.3f} '
    f'loop_ms={milliseconds(loop, args):.3f} '
    f'states={errors[0]:.1e} gradients={errors[1]:.1e} '
    f'repeats={"equal" if same else "DIFFER"}',
    flush=True,
  )
  return same and (precision != 'highest' or max(errors) < _TOLERANCE.value)


def main(argv: list[str]) -> None:
  """Compares, prints."""
  del argv
  device = jax.devices()[0]
  if device.platform != 'gpu' and not _INTERPRET.value:
    raise SystemExit('the kernel is for a GPU; --interpret tries it without')
  print(f'device={device.device_kind} jax={jax.__version__}', flush=True)
  sizes = [int(size) for size in _BATCHES.value]
  good = [compare(size, 'highest') for size in sizes]
  good += [compare(size, 'default') for size in sizes]
  if not all(good):
    raise SystemExit('kernel and loop disagree')


if __name__ == '__main__':
  app.run(main)
