"""Which share of the machine's peaks a training step reaches."""

import statistics
import time

import jax
import jax.numpy as jnp

from dynllm_jax.runs import prepared
from experiments import aims
from experiments import flops
from experiments import phases
from experiments.slices import Slices


def measure(
  slices: Slices, run: prepared.PreparedRun, repeats: int, side: int
) -> aims.Found:
  """The share of the GEMM peak that training reaches, and where time goes.

  Peaks and training are measured in turn, so that other work on the machine
  hurts both. Of the peaks the best counts, of training the median.

  Args:
    slices: of `run`.
    run: of one of `flops.SYSTEMS`.
    repeats: how many slices are counted, after one to warm up.
    side: of the matrices whose product finds the peak.

  Returns:
    `value`, the share (model FLOP utilization), and what it is made of.
  """
  config, peaks, copies, times = run.config, [], [], []
  for _ in range(repeats + 1):
    peaks.append(gemm_peak(side))
    copies.append(copy_rate())
    events, seconds = slices.step()
    times.append(seconds / events)

  negatives = config.train.num_negatives
  counts = flops.count_rows(run.inputs, run.train_plan, config.model, negatives)

  def per_event(rows: flops.Counts) -> float:
    llm_dim = run.inputs.item_text.shape[1]
    return flops.step(config.model, rows, llm_dim, negatives) / counts.events

  operations, seconds = per_event(counts), statistics.median(times[1:])
  repeated = per_event(flops.with_repeats(counts, negatives))

  size = float(run.train_plan.batches.size.mean())  # events of a step
  dim, batch = config.model.dim, run.train_plan.batch_size
  moved = slices.bytes_per_step()
  parts = phases.milliseconds(slices, config.model, repeats)
  products = gemm_rates(
    [
      (2 * batch, 2 * dim, dim),
      (2 * batch, dim, dim),
      (batch, 3 * dim, 3 * dim),
    ],
    repeats,
  )
  return {
    'value': operations / seconds / max(peaks),
    'value_if_repeated_nodes_counted': repeated / seconds / max(peaks),
    'gflop_per_step': size * operations / 1e9,
    'ms_per_step': 1e3 * size * seconds,
    'events_per_s': 1 / seconds,
    'gemm_peak_gflop_per_s': max(peaks) / 1e9,
    'gb_per_step_xla': moved / 1e9,
    'copy_peak_gb_per_s': max(copies) / 1e9,
    'share_of_copy_peak': moved / (size * seconds) / max(copies),
    'flop_per_byte': size * operations / moved,
    'peak_memory_mb': slices.peak_bytes() / 1e6,
    'compile_s': slices.compile_s,
    'phases_ms': parts,
    'rows_of_a_batch': vars(counts),
    'gemm_gflop_per_s_at': {k: v / 1e9 for k, v in products.items()},
  }


def gemm_peak(side: int = 4096, repeats: int = 5) -> float:
  """Operations a second of a large float32 product in JAX, at its best."""
  key = jax.random.key(0)
  left, right = (
    jax.random.normal(k, (side, side)) for k in jax.random.split(key)
  )
  return max(_rates(left, right, repeats))


def gemm_rates(
  shapes: list[tuple[int, int, int]], repeats: int = 5
) -> dict[str, float]:
  """Operations a second of products of given shapes, medians.

  Args:
    shapes: rows, inner dimension and columns of each product.
    repeats: runs that are counted, after one to warm up.

  Returns:
    By `ROWSxINNERxCOLUMNS`.
  """
  rates = {}
  for rows, inner, columns in shapes:
    keys = jax.random.split(jax.random.key(0))
    rates[f'{rows}x{inner}x{columns}'] = statistics.median(
      _rates(
        jax.random.normal(keys[0], (rows, inner)),
        jax.random.normal(keys[1], (inner, columns)),
        repeats,
      )
    )
  return rates


def _rates(left: jax.Array, right: jax.Array, repeats: int) -> list[float]:
  """Operations a second of one product, run after run, without the first."""
  operations = 2 * left.shape[0] * left.shape[1] * right.shape[1]
  # A run has so many products that its start does not matter.
  count = min(1_000, max(1, int(4e9 // operations)))
  product = jax.jit(jnp.matmul)

  rates = []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready([product(left, right) for _ in range(count)])
    rates.append(count * operations / (time.perf_counter() - began))
  return rates[1:]


def copy_rate(size: int = 1 << 26, repeats: int = 2) -> float:
  """Bytes a second, read and written, of a large copy at its best.

  Args:
    size: float32 numbers that are copied.
    repeats: copies that are counted, after one to warm up.
  """
  values = jnp.zeros([size], jnp.float32)
  add = jax.jit(lambda x: x + 1)
  rates = []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready(add(values))
    rates.append(2 * values.nbytes / (time.perf_counter() - began))
  return max(rates[1:])
