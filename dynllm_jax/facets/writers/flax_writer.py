"""A writer that runs a language model on this machine.

Decoders of this package (SPEC 8.1) may fill a fixed form; what they do not
cover is run with the Flax classes of Hugging Face transformers, where they have
one.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from dynllm_jax import checks
from dynllm_jax.facets import guided_form
from dynllm_jax.facets import language_model
from dynllm_jax.facets import llm_planning
from dynllm_jax.facets import llm_writing
from dynllm_jax.facets import prompts
from dynllm_jax.facets.batched_generation import Generator
from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.facets.language_model import Reply
from dynllm_jax.facets.language_model import Request
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.text.decoder import Decoder
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

VERSION = 2

_FIELD = 'config.facets.writer.model'
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
_WEIGHTS = ('full', 'int8')


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The writer in words, for reports."""
  model = language_model.describe(writer_config)
  weights = ', int8 weights' if writer_config.weights == 'int8' else ''
  return f'{model}, run here ({writer_config.dtype}{weights})'


def identity(
  writer_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """What texts depend on besides the purchases: settings and weights.

  The identity of the weights is noted in the store, so that it is known on
  machines that no longer have them.
  """
  check(writer_config)
  return {
    **language_model.settings(writer_config, *_read(writer_config)),
    'version': VERSION,
    'weights': model_files.identity(_FIELD, writer_config.model, store),
  }


def _read(writer_config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The fields of this writer alone on which its texts depend."""
  # Texts of before there was a choice are found again.
  full = writer_config.weights == 'full'
  return ('dtype',) if full else ('dtype', 'weights')


def write(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> FacetTexts:
  """Writes the facets of each profile; see `llm_writing.write`."""
  return llm_writing.write(
    writer_config,
    make_model(writer_config, report),
    log,
    profiles,
    store,
    report,
  )


def plan(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> None:
  """Says what writing would take; see `llm_planning.plan`."""
  llm_planning.plan(
    writer_config,
    make_model(writer_config, report),
    log,
    profiles,
    store,
    report,
  )


def check(writer_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that this writer reads.

  Raises:
    InputError: naming those whose value is not allowed.
  """
  language_model.check(writer_config)
  checks.check(
    'config.facets.writer',
    writer_config,
    [
      checks.one_of('dtype', _DTYPES),
      checks.one_of('weights', _WEIGHTS),
      checks.at_least('batch_size', 1),
      checks.at_least('devices_per_copy', 1),
    ],
  )


def make_model(
  writer_config: ml_collections.ConfigDict, report: Callable[[str], None]
) -> language_model.Model:
  """The model; its tokenizer is loaded now, its weights when it is asked.

  Args:
    writer_config: `config.facets.writer`.
    report: takes lines of progress.

  Raises:
    InputError: if a field is not allowed, or the model cannot be found.
  """
  check(writer_config)
  about = {
    **language_model.about(writer_config, *_read(writer_config)),
    'weights': model_files.identity(_FIELD, writer_config.model),
  }
  tokenizer = load_tokenizer(writer_config.model)
  opening = _opening(writer_config, tokenizer)
  loaded: list[Generator | Decoding] = []

  def generator() -> Generator | Decoding:
    if not loaded:
      report(f'facets: loading {writer_config.model}')
      loaded.append(load_generator(writer_config, tokenizer))
    return loaded[0]

  def speed() -> str:
    """What programs that were compiled before have taken."""
    rates = [m.rates for m in loaded if isinstance(m, Decoding)]
    return str(rates[0]) if rates else ''

  def answer(
    requests: Sequence[Request],
  ) -> Iterator[list[tuple[Request, Reply]]]:
    return answers(writer_config, generator(), tokenizer, requests)

  def count_texts(texts: Sequence[str]) -> list[int]:
    if not texts:
      return []
    ids = tokenizer(list(texts), add_special_tokens=False).input_ids
    return list(map(len, ids))

  def count_prompts(messages: Sequence[str]) -> list[int]:
    ids = prompt_ids(writer_config, tokenizer, messages, opening)
    return list(map(len, ids))

  counter = prompts.Counter(count_texts, count_prompts)
  return language_model.Model(about, counter, answer, speed)


def _opening(
  writer_config: ml_collections.ConfigDict, tokenizer: Any
) -> list[int]:
  """Token ids with which every answer is made to begin."""
  if not language_model.is_guided(writer_config):
    return []
  names = language_model.wording(writer_config).NAMES
  return guided_form.opening(tokenizer, names)


def load_tokenizer(name: str) -> Any:
  """The tokenizer of a model.

  Args:
    name: the name of a model or its directory.

  Raises:
    InputError: if it cannot be found, downloaded or read.
  """
  folder = model_files.locate(_FIELD, name)
  try:
    import transformers
  except ImportError as error:
    raise model_files.no_transformers(_FIELD, error) from error
  # It would warn of prompts longer than the model allows, but prompts are cut
  # to `max_input_tokens` where they are made, and `load_generator` checks that.
  transformers.utils.logging.set_verbosity_error()
  return flax_models.load_tokenizer(_FIELD, folder)


def load_generator(
  writer_config: ml_collections.ConfigDict, tokenizer: Any
) -> Generator | Decoding:
  """A generator with the weights of the configured model.

  Args:
    writer_config: `config.facets.writer`.
    tokenizer: of the model.

  Raises:
    InputError: if the model takes no inputs as long as the config says, or
      does not fill forms.
  """
  longest = writer_config.max_input_tokens
  output = writer_config.max_output_tokens
  loaded = flax_models.load(
    _FIELD,
    writer_config.model,
    'generator',
    _DTYPES[writer_config.dtype],
    longest + output,
    _mesh(writer_config),
    writer_config.weights == 'int8',
  )
  _check_length(writer_config, loaded)
  ends = end_tokens(loaded, tokenizer)
  pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
  stops = Stops(output, tuple(ends), pad)
  guided = language_model.is_guided(writer_config)
  if not isinstance(loaded.model, Decoder):
    if guided:
      raise checks.not_allowed(
        'config.facets.writer.form',
        'guided',
        f'free, as {writer_config.model!r} is of the architecture '
        f'{loaded.config.model_type!r}, and not a decoder of this package',
      )
    return Generator(
      loaded.model, loaded.params, writer_config.batch_size, longest, stops
    )

  if guided:
    vocab = loaded.model.settings.vocab_size
    names = language_model.wording(writer_config).NAMES
    form = guided_form.make(tokenizer, vocab, ends, output, names)
    stops = stops._replace(form=form)
  decoding = Decoding(
    loaded.model,
    loaded.params,
    loaded.mesh,
    writer_config.batch_size,
    longest,
    stops,
  )
  decoding.share(_beginning(writer_config, tokenizer))
  return decoding


def _mesh(writer_config: ml_collections.ConfigDict) -> Mesh:
  """The local devices, by copies of the model."""
  parts, devices = writer_config.devices_per_copy, jax.local_device_count()
  if devices % parts:
    raise checks.not_allowed(
      'config.facets.writer.devices_per_copy',
      parts,
      f'a divisor of {devices}, the devices of this machine',
    )
  return flax_models.device_mesh(parts)


def _check_length(
  writer_config: ml_collections.ConfigDict, loaded: flax_models.Loaded
) -> None:
  """Checks that the model has positions for prompt and answer."""
  longest = writer_config.max_input_tokens
  output = writer_config.max_output_tokens
  needed = (
    max(longest, output)
    if loaded.config.is_encoder_decoder
    else longest + output
  )
  positions = loaded.max_positions or needed
  if positions < needed:
    raise InputError(
      f'config.facets.writer.max_input_tokens: {longest} with '
      f'max_output_tokens {output} is more than {writer_config.model!r} '
      f'has positions; allowed: {positions} together'
    )


def _beginning(
  writer_config: ml_collections.ConfigDict, tokenizer: Any
) -> list[int]:
  """Token ids with which all prompts begin, the system message and more."""
  header = language_model.wording(writer_config).HEADER
  messages = [f'{header}{letter}' for letter in '1a']
  one, other = prompt_ids(writer_config, tokenizer, messages)
  size = next((k for k, (a, b) in enumerate(zip(one, other)) if a != b), 0)
  return one[:size]


def end_tokens(loaded: flax_models.Loaded, tokenizer: Any) -> list[int]:
  """Tokens that end an answer; a chat model has several.

  Raises:
    InputError: if the model's files name none.
  """
  stated = model_files.read_json(loaded.folder / 'generation_config.json') or {}
  ends: list[int | None] = []
  for value in (
    stated.get('eos_token_id'),
    loaded.config.eos_token_id,
    tokenizer.eos_token_id,
  ):
    ends += value if isinstance(value, list) else [value]
  distinct = list(dict.fromkeys(end for end in ends if end is not None))
  if not distinct:
    raise InputError(
      f'{_FIELD}: {loaded.folder} names no token that ends a text; allowed: '
      'a model with eos_token_id'
    )
  return distinct


def answers(
  writer_config: ml_collections.ConfigDict,
  generator: Generator | Decoding,
  tokenizer: Any,
  requests: Sequence[Request],
) -> Iterator[list[tuple[Request, Reply]]]:
  """Answers requests in batches of prompts that are padded to one length.

  Args:
    writer_config: `config.facets.writer`.
    generator: of `load_generator`.
    tokenizer: of the model.
    requests: in any order.

  Yields:
    A batch's requests, each with its reply.
  """
  names = language_model.wording(writer_config).NAMES
  opening = _opening(writer_config, tokenizer)
  requests = sorted(requests, key=lambda request: request.tokens)
  at = 0
  while at < len(requests):
    length = generator.length(requests[at].tokens)
    batch = [
      request
      for request in requests[at : at + generator.batch_size]
      if generator.length(request.tokens) == length
    ]
    at += len(batch)

    messages = [request.message for request in batch]
    ids = prompt_ids(writer_config, tokenizer, messages, opening)
    outputs: list[Any] = generator(
      ids,
      [request.temperature for request in batch],
      [request.seed for request in batch],
    )
    if opening:
      texts = [guided_form.answer(tokenizer, o, names) for o in outputs]
      sizes = [sum(map(len, strings)) for strings in outputs]
    else:
      texts = [tokenizer.decode(o, skip_special_tokens=True) for o in outputs]
      sizes = list(map(len, outputs))
    replies = map(Reply, texts, map(len, ids), sizes)
    yield list(zip(batch, replies, strict=True))


def prompt_ids(
  writer_config: ml_collections.ConfigDict,
  tokenizer: Any,
  messages: Sequence[str],
  opening: Sequence[int] = (),
) -> list[list[int]]:
  """Token ids of whole prompts.

  Args:
    writer_config: `config.facets.writer`.
    tokenizer: of the model.
    messages: the user messages.
    opening: token ids with which the answer is made to begin.
  """
  if not messages:
    return []
  chat = bool(tokenizer.chat_template)
  write: Callable[[list[dict[str, str]]], str] = (
    functools.partial(_chat, tokenizer) if chat else _plain
  )
  texts = [
    write(language_model.messages(writer_config, message))
    for message in messages
  ]
  # A chat template writes the special tokens itself.
  rows = tokenizer(texts, add_special_tokens=not chat).input_ids
  return [[*row, *opening] for row in rows]


def _plain(turns: list[dict[str, str]]) -> str:
  """A prompt for a model that was trained on no form of a chat."""
  system, *others = (turn['content'] for turn in turns)
  return f'{system}\n\n' + '\n\n'.join(
    text if number % 2 else f'{text}\n\nAnswer:\n'
    for number, text in enumerate(others)
  )


def _chat(tokenizer: Any, turns: list[dict[str, str]]) -> str:
  """A prompt in the form that the model was trained on."""
  try:
    import jinja2
  except ImportError as error:
    raise InputError(
      f'{_FIELD}: a model with a chat template needs the package jinja2 '
      f"({error}); install it with pip install 'dynllm_jax[llm]'"
    ) from error
  # A model that thinks aloud first would not keep to the form.
  render = functools.partial(
    tokenizer.apply_chat_template,
    tokenize=False,
    add_generation_prompt=True,
    enable_thinking=False,
  )
  try:
    return render(turns)
  except jinja2.TemplateError:  # the template takes no system message
    system, first, *others = turns
    joined = f'{system["content"]}\n\n{first["content"]}'
    return render([{**first, 'content': joined}, *others])
