"""Order that XLA's CPU backend would otherwise undo.

XLA is free to compute a value again for everything that reads it, and to copy
a table rather than wait with overwriting it. On a CPU it does so where that
is expensive. Both functions here stop it by control flow on a value that is
known only when the program runs. `experiments/barrier_savings.py` measures
what each saves, so that one sees when it can go.

`jax.lax.optimization_barrier`, which is made for this, does not serve: the CPU
pipeline drops it before it fuses and before it inserts copies. No trace of it
is left in the compiled text, and in all places measured the time, the copies
and the temporary memory are about those without any barrier. It does serve
where XLA decides before it drops it, as in `live/programs.scores`.

Figures are of jax and jaxlib 0.10.2 on two cores that other work kept busy:
processor milliseconds, medians of 5 to 7 runs in turn of the program with the
barrier, without it, and with `optimization_barrier` in its place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.types import Array


def fusion_barrier(
  compute: Callable[..., Any], *args: Any, condition: Array | None = None
) -> Any:
  """Returns `compute(*args)`, with arguments and result computed only once.

  XLA's CPU backend thinks elementwise chains, and sums of gathers, are cheap:
  it computes them again inside each of their readers, and each time that a
  reader looks at a value. It moves nothing into or out of a branch, and at
  compilation it cannot know whether this branch is taken.

  Measured, with, without and `optimization_barrier`:
    neighbor sums of LightGCN, three layers: 143, 847 and 529 ms; temporary
      memory of its training step 56, 747 and 747 MiB;
    GAT, two layers: 412, 1,261 and 1,328 ms; 273, 1,520 and 1,508 MiB;
    the top 80 of 128 values of 8,192 rows: 17.7, 23.2 and 23.0 ms;
    attention of TGN over ten neighbors: 34.4, 37.5 and 37.4 ms;
    the ordered update by 2,048 events of a thousand nodes, with its gradient:
      121, 184 and 189 ms.

  Args:
    compute: a function of arrays; it has no gradient of its own where the
      caller defines one, as all callers here do.
    *args: its arguments.
    condition: bool[], which the program computes: whether to compute at all;
      where False the result is zeros. By default it is always True, and made
      from the first argument, an array of 32-bit values that is not empty.

  Returns:
    The result.
  """
  if condition is None:
    first = jax.lax.bitcast_convert_type(args[0].reshape(-1)[0], jnp.int32)
    # As a float this is a NaN that no operation makes.
    condition = first != jnp.iinfo(jnp.int32).max

  def zeros(*args: Any) -> Any:
    shapes = jax.eval_shape(compute, *args)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  return jax.lax.cond(condition, compute, zeros, *args)


def after(flags: Array, values: Array) -> Array:
  """Returns `flags`, made to depend on all of `values`.

  For flags that say which rows of a table are to be written, and values that
  are computed from the table as it was. XLA writes a table in place only where
  the data themselves say that every reader has been served; where a reader
  might run after the write it copies the whole table, in every step of a scan.

  Measured, with, without and `optimization_barrier`:
    eight batches written to a memory of a million nodes: 13.3, 16.4 and
      14.9 ms; no copy with it, else two of an i32[nodes] table a batch;
    eight batches ranked by transitions of 5,000 items: 8.7, 233.0 and
      232.6 ms; no copy with it, else two of the table f32[items, items];
    ranking by DynLLM with 100,000 users: no copy of the users' memory with it
      and 12 MiB of temporary memory, else two a batch and 62 MiB.

  Args:
    flags: bool[...].
    values: f32[...], not empty.

  Returns:
    bool[...], the same flags.
  """
  # Only -inf is that low, and a comparison with NaN is False.
  impossible = jnp.max(values) < jnp.finfo(values.dtype).min
  return flags & ~impossible
