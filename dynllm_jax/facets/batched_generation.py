"""Batched generation with a Flax model of transformers on all local devices."""

import bisect
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.facets.decoding import Stops
from dynllm_jax.types import Array

# A prompt is padded to the next of these lengths, by a fifth on average, and
# a program is compiled for each that occurs.
_BUCKETS = tuple(size * 2**k for k in range(16) for size in (32, 48))


class Generator:
  """Continues prompts, several at a time.

  A row's answer depends on its own prompt, temperature and seed alone: a
  length has one program with a fixed number of rows, and noise comes from the
  row's seed.
  """

  def __init__(
    self,
    model: Any,
    params: Any,
    batch_size: int,
    max_input_tokens: int,
    stops: Stops,
  ) -> None:
    """Places the parameters on all local devices.

    Args:
      model: a Flax causal or sequence-to-sequence model of transformers.
      params: its parameters.
      batch_size: prompts generated together; rounded up to a multiple of the
        devices.
      max_input_tokens: the longest prompt that will come.
      stops: where answers end.
    """
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ('data',))
    self._rows = NamedSharding(mesh, PartitionSpec('data'))
    self.batch_size = -(-batch_size // len(devices)) * len(devices)
    self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    self._left = not model.config.is_encoder_decoder
    self._longest = max_input_tokens
    self._pad, self._ends = stops.pad, frozenset(stops.ends)
    self._generate = jax.jit(functools.partial(_generate, model, stops))

  def length(self, tokens: int) -> int:
    """The length to which a prompt is padded."""
    return min(_BUCKETS[bisect.bisect_left(_BUCKETS, tokens)], self._longest)

  def __call__(
    self,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    seeds: Sequence[int],
  ) -> list[list[int]]:
    """Continues at most `batch_size` prompts of any lengths.

    Args:
      prompts: token ids.
      temperatures: 0 is greedy.
      seeds: of each row's sampling, below 2^63.

    Returns:
      Token ids of each answer, without the one that ends it.
    """
    # A program has a fixed number of rows: those left over repeat the first
    # prompt, and so end when it does.
    filled = [*range(len(prompts))] + [0] * (self.batch_size - len(prompts))
    length = self.length(max(map(len, prompts)))

    tokens = np.full((self.batch_size, length), self._pad, np.int32)
    mask = np.zeros((self.batch_size, length), np.int32)
    for row, source in enumerate(filled):
      prompt = prompts[source]
      where = (
        slice(length - len(prompt), None) if self._left else slice(len(prompt))
      )
      tokens[row, where], mask[row, where] = prompt, 1

    # A seed has 63 bits, and arrays on the device 32.
    halves = [[seeds[i] & 0xFFFFFFFF, seeds[i] >> 32] for i in filled]
    out = self._generate(
      self._params,
      *jax.device_put(
        (
          tokens,
          mask,
          np.array([temperatures[i] for i in filled], np.float32),
          np.array(halves, np.uint32),
        ),
        self._rows,
      ),
    )

    return [self._cut(row) for row in np.asarray(out)[: len(prompts)].tolist()]

  def _cut(self, tokens: list[int]) -> list[int]:
    """An answer up to the first token that ends it."""
    end = next(
      (k for k, token in enumerate(tokens) if token in self._ends), None
    )
    return tokens[:end]


def _generate(
  model: Any,
  stops: Stops,
  params: Any,
  tokens: Array,
  mask: Array,
  temperatures: Array,
  seeds: Array,
) -> jax.Array:
  """Generates greedily from logits with noise, which is sampling.

  The largest of `logits / T + Gumbel noise` is a draw from `softmax(logits /
  T)`, and so is the largest of `logits + T noise`, which holds for T = 0 too.
  Each row has noise of its own, which transformers' sampling does not give it.

  Args:
    model: a Flax model of transformers.
    stops: where answers end.
    params: the model's parameters.
    tokens, mask: i32[batch, length].
    temperatures: f32[batch].
    seeds: u32[batch, 2].

  Returns:
    i32[batch, max_new], padded behind each row's end.
  """
  from transformers import GenerationConfig

  start = 1 if model.config.is_encoder_decoder else tokens.shape[1]
  keys = jax.vmap(
    lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1])
  )(seeds)

  def process(_: Any, logits: jax.Array, length: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)

    def noisy() -> jax.Array:
      noise = jax.vmap(
        lambda key: jax.random.gumbel(
          jax.random.fold_in(key, length - start), logits.shape[1:]
        )
      )(keys)
      return logits + temperatures[:, None] * noise

    logits = jax.lax.cond((temperatures > 0).any(), noisy, lambda: logits)
    # transformers stops at one token only.
    if len(stops.ends) > 1:
      likeliest = logits[:, jnp.array(stops.ends)].max(axis=1)
      logits = logits.at[:, stops.ends[0]].set(likeliest)
    return logits

  settings = GenerationConfig(
    max_new_tokens=stops.max_new,
    do_sample=False,
    num_beams=1,
    pad_token_id=stops.pad,
    eos_token_id=stops.ends[0],
    decoder_start_token_id=model.config.decoder_start_token_id
    if model.config.is_encoder_decoder
    else None,
  )
  out = model.generate(
    tokens,
    attention_mask=mask,
    params=params,
    generation_config=settings,
    logits_processor=_as_list(process),
  )
  return out.sequences[:, start:]


def _as_list(process: Any) -> Any:
  """A function of logits in the list that transformers takes."""
  from transformers.generation import FlaxLogitsProcessorList

  return FlaxLogitsProcessorList([process])
