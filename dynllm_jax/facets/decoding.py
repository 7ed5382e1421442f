"""Batched generation with a decoder of this package (SPEC 8.1).

The beginning that all prompts share is run once and kept; a batch runs what is
left of its prompts in chunks, then all rows go on a token at a time, each until
its own end. Every length of prompts has one program.
"""

import bisect
from collections.abc import Sequence
import functools
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.text import decoder
from dynllm_jax.text.decoder import Context
from dynllm_jax.text.decoder import Decoder
from dynllm_jax.types import Array

# A prompt is padded to the next of these lengths, by a fifth on average, and
# a program is compiled for each that occurs.
_BUCKETS = tuple(size * 2**k for k in range(16) for size in (32, 48))
# Tokens of a row that are run together, for the memory that they take.
_CHUNK = 256


class Form(NamedTuple):
  """A form whose strings the model fills, token by token.

  Attributes:
    joints: i32[strings, most], the tokens that lead to each string. Those of
      the first belong to the prompt.
    sizes: i32[strings], how many of them.
    ends: bool[vocab], tokens that end a string.
    allowed: bool[vocab], tokens that a string may have, or that end it.
    limit: tokens of a string.
  """

  joints: np.ndarray
  sizes: np.ndarray
  ends: np.ndarray
  allowed: np.ndarray
  limit: int


class Stops(NamedTuple):
  """Where answers end.

  Attributes:
    max_new: where an answer is cut off, in tokens.
    ends: tokens that end an answer.
    pad: the token that fills rows up.
    form: what is filled; None for free answers.
  """

  max_new: int
  ends: tuple[int, ...]
  pad: int
  form: Form | None = None


class Rates(NamedTuple):
  """What has been computed so far, and how long it took.

  Attributes:
    prompts: how many.
    prompt_tokens: tokens of prompts, without what all share and padding.
    prompt_s: seconds that they took.
    new_tokens: tokens of answers.
    new_s: seconds that they took.
  """

  prompts: int = 0
  prompt_tokens: int = 0
  prompt_s: float = 0.0
  new_tokens: int = 0
  new_s: float = 0.0

  def __str__(self) -> str:
    """The rates in words, '' as long as there are none."""
    if not self.prompts:
      return ''
    return (
      f'{self.prompts / (self.prompt_s + self.new_s):,.2f} prompts/s, prefill '
      f'{self.prompt_tokens / self.prompt_s:,.0f} tokens/s, decode '
      f'{self.new_tokens / self.new_s:,.0f} tokens/s'
    )


class _Noise(NamedTuple):
  """How rows are sampled.

  Attributes:
    temperatures: f32[rows]; 0 is greedy.
    seeds: u32[rows, 2].
  """

  temperatures: Array
  seeds: Array


class _Sampler(NamedTuple):
  """How tokens are chosen.

  Attributes:
    temperatures: f32[rows]; 0 is greedy.
    keys: keys[rows].
  """

  temperatures: Array
  keys: Array


class _Progress(NamedTuple):
  """A batch as it is written.

  Attributes:
    step: i32[], tokens that have been chosen.
    token: i32[rows], the last of them.
    done: bool[rows].
    out: i32[rows, max_new], what was written; of a form [rows, strings, limit
      + 1], each with the token that ended it. -1 where there is nothing.
    string: i32[rows], the number of the string that is written or led to.
    joint: i32[rows], the next token that leads to it; -1 inside of it.
    used: i32[rows], tokens of it.
    cache: of the rows.
  """

  step: Array
  token: Array
  done: Array
  out: Array
  string: Array
  joint: Array
  used: Array
  cache: tuple[decoder.Keys, ...]


class Decoding:
  """Continues prompts, several at a time.

  A row's answer depends on its own prompt, temperature and seed alone: a
  length has one program with a fixed number of rows, and noise comes from the
  row's seed.

  Attributes:
    batch_size: prompts that are continued together.
    buckets: lengths to which prompts are padded, in ascending order; fewer of
      them are fewer programs, and more padding.
    rates: what has been computed, programs' first calls left out.
  """

  def __init__(
    self,
    model: Decoder,
    params: Any,
    mesh: Mesh,
    batch_size: int,
    max_input_tokens: int,
    stops: Stops,
  ) -> None:
    """Keeps what all batches need; computes nothing.

    Args:
      model: the decoder.
      params: its parameters, on the mesh.
      mesh: the devices; rows are divided over its axis `data`.
      batch_size: prompts continued together; rounded up to a multiple of that
        axis.
      max_input_tokens: the longest prompt that will come.
      stops: where answers end.
    """
    shards = mesh.shape['data']
    self.batch_size = -(-batch_size // shards) * shards
    self.buckets: Sequence[int] = _BUCKETS
    self.rates = Rates()
    self._rows = NamedSharding(mesh, PartitionSpec('data'))
    self._model, self._params, self._mesh = model, params, mesh
    self._longest, self._stops = max_input_tokens, stops
    self._beginning: tuple[int, ...] = ()
    self._prefix: tuple[decoder.Keys, ...] = ()
    self._seen: set[tuple[int, bool]] = set()

    self._run_chunk = jax.jit(
      functools.partial(_run_chunk, model), donate_argnums=2
    )
    self._write = jax.jit(
      functools.partial(_write, model, stops), donate_argnums=2
    )
    self._make_cache = jax.jit(
      lambda columns: decoder.empty_cache(
        model.settings, self.batch_size, columns, model.dtype
      ),
      static_argnums=0,
      out_shardings=NamedSharding(mesh, self._cache_spec()),
    )

  def share(self, beginning: Sequence[int]) -> None:
    """Runs the beginning that prompts share, for all batches to come.

    Args:
      beginning: token ids. A prompt that begins otherwise is run whole.
    """
    # Dynamic scaling turns a beginning by the length of what follows it.
    kinds = {
      layer.rope.kind for layer in self._model.settings.layers if layer.rope
    }
    if not beginning or 'dynamic' in kinds:
      return
    tokens = np.array([beginning], np.int32)
    with _precision(self._model):
      self._prefix = jax.jit(functools.partial(_run_whole, self._model))(
        self._params, tokens
      )
    self._beginning = tuple(beginning)

  @property
  def num_shared(self) -> int:
    """Tokens of the beginning that prompts share."""
    return len(self._beginning)

  def length(self, tokens: int) -> int:
    """The length to which a prompt of so many tokens is padded."""
    return self._padded(tokens, len(self._beginning))

  def _padded(self, tokens: int, shared: int) -> int:
    """The columns of a prompt, whose first `shared` tokens take none."""
    left, longest = (
      max(size - shared, 1) for size in (tokens, max(self._longest, tokens))
    )
    at = bisect.bisect_left(self.buckets, left)
    bucket = min([*self.buckets[at:], longest][0], longest)
    # Sixteen columns at a time, which suits every device.
    chunks = -(-bucket // _CHUNK)
    return -(-bucket // (16 * chunks)) * 16 * chunks

  def __call__(
    self,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    seeds: Sequence[int],
  ) -> list[Any]:
    """Continues at most `batch_size` prompts of any lengths.

    Args:
      prompts: token ids.
      temperatures: 0 is greedy.
      seeds: of each row's sampling, below 2^63.

    Returns:
      Token ids of each answer, without the one that ends it; of a form a list
      of its strings' token ids, each with the one that ends it, if any.
    """
    size = len(self._beginning)
    # A tokenizer might join the beginning's end to what follows it.
    if not all(
      len(p) > size and tuple(p[:size]) == self._beginning for p in prompts
    ):
      size = 0
    length = self._padded(max(map(len, prompts)), size)

    # A program has a fixed number of rows: those left over repeat the first
    # prompt, and so end when it does.
    filled = [*range(len(prompts))] + [0] * (self.batch_size - len(prompts))
    tokens = np.full((self.batch_size, length), self._stops.pad, np.int32)
    starts = np.zeros(self.batch_size, np.int32)
    for row, source in enumerate(filled):
      rest = prompts[source][size:]
      starts[row] = length - len(rest)
      tokens[row, starts[row] :] = rest

    # A seed has 63 bits, and arrays on the device 32.
    halves = [[seeds[i] & 0xFFFFFFFF, seeds[i] >> 32] for i in filled]
    noise = _Noise(
      np.array([temperatures[i] for i in filled], np.float32),
      np.array(halves, np.uint32),
    )
    context = Context(starts, starts, prefix=self._prefix if size else ())
    clock = [time.perf_counter()]
    out = self._run(tokens, context, noise, clock)[: len(prompts)]
    self._count(
      (length, bool(size)),
      int((length - starts[: len(prompts)]).sum()),
      out,
      clock,
    )
    return [self._cut(row) for row in out]

  def _run(
    self,
    tokens: np.ndarray,
    context: Context,
    noise: _Noise,
    clock: list[float],
  ) -> np.ndarray:
    """Runs a batch; adds to `clock` when prompts and answers were finished."""
    length = tokens.shape[1]
    cache = self._make_cache(length + self._steps())
    starts, noise, placed = jax.device_put(
      (context.starts, noise, tokens), self._rows
    )
    context = context._replace(starts=starts, lengths=starts)

    with _precision(self._model):
      width = length // -(-length // _CHUNK)
      for column in range(0, length, width):
        logits, cache = self._run_chunk(
          self._params,
          placed[:, column : column + width],
          cache,
          context._replace(column=np.array(column, np.int32)),
        )
      jax.block_until_ready(logits)
      clock.append(time.perf_counter())
      context = context._replace(column=np.array(length, np.int32))
      written, _ = self._write(self._params, logits, cache, context, noise)
      out = np.asarray(written)
    clock.append(time.perf_counter())
    return out

  def _count(
    self,
    shape: tuple[int, bool],
    tokens: int,
    out: np.ndarray,
    clock: list[float],
  ) -> None:
    """Adds a batch to `rates`, if its programs were compiled before it."""
    if shape in self._seen:
      rates = self.rates
      self.rates = Rates(
        rates.prompts + len(out),
        rates.prompt_tokens + tokens,
        rates.prompt_s + clock[1] - clock[0],
        rates.new_tokens + int((out >= 0).sum()),
        rates.new_s + clock[2] - clock[1],
      )
    self._seen.add(shape)

  def _steps(self) -> int:
    """The most tokens of an answer, those that a form forces among them."""
    form = self._stops.form
    if form is None:
      return self._stops.max_new
    return int(form.sizes[1:].sum()) + len(form.sizes) * form.limit

  def _cache_spec(self) -> PartitionSpec:
    """How a cache, [rows, kv_heads, ...], is divided."""
    shards = self._mesh.shape['tensor']
    even = self._model.settings.num_kv_heads % shards == 0
    return PartitionSpec('data', 'tensor' if even else None)

  def _cut(self, row: np.ndarray) -> Any:
    """An answer up to the first token that ends it."""
    if row.ndim == 2:
      return [string[string >= 0].tolist() for string in row]
    ends = np.isin(row, self._stops.ends) | (row < 0)
    return row[: int(ends.argmax()) if ends.any() else None].tolist()


def _precision(model: Decoder) -> Any:
  """Float32 means float32, on devices that would round its factors too."""
  exact = jnp.dtype(model.dtype) == jnp.float32
  return jax.default_matmul_precision('highest' if exact else 'default')


def _run_whole(
  model: Decoder, params: Any, tokens: Array
) -> tuple[decoder.Keys, ...]:
  """The keys of one text, i32[1, tokens], without its logits."""
  lengths = np.full(1, tokens.shape[1], np.int32)
  _, keys = decoder.run(model, params, tokens, decoder.whole(tokens, lengths))
  return keys


def _run_chunk(
  model: Decoder,
  params: Any,
  tokens: Array,
  cache: tuple[decoder.Keys, ...],
  context: Context,
) -> tuple[jax.Array, tuple[decoder.Keys, ...]]:
  """Runs some columns of prompts; the logits are of the last one alone.

  Args:
    model: the decoder.
    params: of the model.
    tokens: i32[rows, columns].
    cache: of the rows; it is apart since it may be overwritten.
    context: the rest, with the first of the columns.
  """
  here = _here(context._replace(cache=cache), tokens.shape[1])
  hidden, cache = decoder.run(model, params, tokens, here)
  logits = decoder.next_logits(model, params, hidden[:, -1])
  return logits, cache


def _here(context: Context, width: int) -> Context:
  """The context with each row's length behind `width` columns."""
  before = context.prefix[0].value.shape[2] if context.prefix else 0
  lengths = before + context.column + width - context.starts
  return context._replace(lengths=lengths)


def _write(
  model: Decoder,
  stops: Stops,
  params: Any,
  logits: Array,
  cache: tuple[decoder.Keys, ...],
  context: Context,
  noise: _Noise,
) -> tuple[jax.Array, tuple[decoder.Keys, ...]]:
  """Writes answers, given the logits behind the prompts.

  Args:
    model: the decoder.
    stops: where answers end.
    params: of the model.
    logits: f32[rows, vocab].
    cache: of the prompts.
    context: the rest, with the first column behind the prompts.
    noise: how answers are sampled.

  Returns:
    What `_Progress.out` has at the end, and the cache, which is returned so
    that it is written where it came in instead of being copied.
  """
  keys = jax.vmap(
    lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1])
  )(noise.seeds)
  sampler = _Sampler(noise.temperatures, keys)
  rows, form = logits.shape[0], stops.form
  shape = (
    (rows, stops.max_new)
    if form is None
    else (rows, len(form.sizes), form.limit + 1)
  )
  zeros = jnp.zeros(rows, jnp.int32)
  progress = _Progress(
    jnp.int32(0),
    zeros,
    jnp.zeros(rows, bool),
    jnp.full(shape, -1, jnp.int32),
    zeros,
    zeros - 1,
    zeros,
    cache,
  )
  advance = (
    functools.partial(_fill, form)
    if form
    else functools.partial(_extend, stops)
  )
  # Nothing is run behind the last token, so that a round is: run, then choose.
  progress = advance(sampler, progress, logits)

  def is_open(progress: _Progress) -> Any:
    more = ~progress.done.all()
    return more if form else more & (progress.step < stops.max_new)

  def go_on(progress: _Progress) -> _Progress:
    where = context.column + progress.step - 1
    here = _here(context._replace(column=where, cache=progress.cache), 1)
    hidden, cache = decoder.run(model, params, progress.token[:, None], here)
    logits = decoder.next_logits(model, params, hidden[:, 0])
    return advance(sampler, progress._replace(cache=cache), logits)

  progress = jax.lax.while_loop(is_open, go_on, progress)
  return jnp.asarray(progress.out), progress.cache


def _choose(sampler: _Sampler, step: Array, logits: Array) -> jax.Array:
  """The likeliest tokens, or samples, i32[rows].

  The largest of `logits / T + Gumbel noise` is a draw from `softmax(logits /
  T)`, and so is the largest of `logits + T noise`, which holds for T = 0 too.
  """

  def noisy() -> jax.Array:
    noise = jax.vmap(
      lambda key: jax.random.gumbel(
        jax.random.fold_in(key, step), logits.shape[1:]
      )
    )(sampler.keys)
    return jnp.asarray(logits + sampler.temperatures[:, None] * noise)

  hot = (sampler.temperatures > 0).any()
  scores = jax.lax.cond(hot, noisy, lambda: jnp.asarray(logits))
  # The first of the largest, as `argmax` has it, which a CPU does in one
  # thread and a value at a time.
  best = scores == scores.max(-1, keepdims=True)
  tokens = jnp.arange(scores.shape[-1], dtype=jnp.int32)
  return jnp.where(best, tokens, scores.shape[-1] - 1).min(-1)


def _extend(
  stops: Stops, sampler: _Sampler, progress: _Progress, logits: Array
) -> _Progress:
  """The next token of free answers."""
  token = _choose(sampler, progress.step, logits)
  token = jnp.where(progress.done, stops.pad, token)
  written = jnp.where(progress.done, -1, token)
  return progress._replace(
    step=progress.step + 1,
    token=token,
    done=progress.done | jnp.isin(token, jnp.array(stops.ends)),
    out=jax.lax.dynamic_update_slice(
      progress.out, written[:, None], (0, progress.step)
    ),
  )


def _fill(
  form: Form, sampler: _Sampler, progress: _Progress, logits: Array
) -> _Progress:
  """The next token of forms: of a string, or of what leads to the next one."""
  rows = jnp.arange(len(progress.token))
  strings = len(form.sizes)
  joints, sizes = jnp.asarray(form.joints), jnp.asarray(form.sizes)
  choice = _choose(
    sampler, progress.step, jnp.where(form.allowed, logits, -jnp.inf)
  )
  inside = (progress.joint < 0) & ~progress.done
  is_full = progress.used >= form.limit
  ends = inside & (is_full | jnp.asarray(form.ends)[choice])

  # The token that ends a string is noted, and not run: the joint stands in its
  # place.
  noted = jnp.where(is_full, -1, choice)
  at = (rows, jnp.minimum(progress.string, strings - 1), progress.used)
  written = jnp.asarray(progress.out)
  out = written.at[at].set(jnp.where(inside, noted, written[at]))

  string = progress.string + ends
  done = progress.done | (string >= strings)
  joint = jnp.where(ends, 0, progress.joint)
  leads = joint >= 0
  forced = joints[jnp.minimum(string, strings - 1), jnp.maximum(joint, 0)]
  after = joint + 1
  return progress._replace(
    step=progress.step + 1,
    token=jnp.where(leads, forced, choice),
    done=done,
    out=out,
    string=string,
    joint=jnp.where(
      leads & (after < sizes[jnp.minimum(string, strings - 1)]), after, -1
    ),
    used=jnp.where(inside & ~ends, progress.used + 1, 0),
    cache=progress.cache,
  )
