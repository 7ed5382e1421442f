"""Text encoder: the embeddings of an OpenAI-compatible endpoint.

`facets.encoder.model` is the name that the endpoint knows its model by; how it
is called, and how much it may cost, is said in `endpoint`. Vectors are kept as
they come, in half precision.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynllm_jax import checks
from dynllm_jax.text import embedding_cache
from dynllm_jax.text.endpoint import BadAnswerError
from dynllm_jax.text.endpoint import Endpoint
from dynllm_jax.text.endpoint import Refused
from dynllm_jax.types import InputError

VERSION = 1

_FIELD = 'config.facets.encoder'
# A call takes this many texts and characters; endpoints allow more.
_CALL_TEXTS = 128
_CALL_CHARACTERS = 100_000


def encode(
  encoder_config: Any, texts: Sequence[str], store: str = ''
) -> np.ndarray:
  """Encodes texts; those that are in the store are not asked for.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder in which embeddings are kept, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if a field is not allowed, a limit is reached, or the endpoint
      fails for good or refuses a text. What it has answered is in the store.
  """
  return embedding_cache.encode(
    texts,
    lambda missing: _vectors(encoder_config, missing),
    identity(encoder_config),
    store,
    wait_seconds=0,
  )


def identity(encoder_config: Any, store: str = '') -> dict[str, Any]:
  """What embeddings follow from but the text.

  Raises:
    InputError: if no model is named.
  """
  del store
  if not encoder_config.model:
    raise checks.not_allowed(
      f'{_FIELD}.model', '', 'the name that the endpoint knows a model by'
    )
  # Not the address: a server may move.
  return {
    'encoder': 'openai',
    'version': VERSION,
    'model': encoder_config.model,
  }


def describe(encoder_config: Any) -> str:
  """The encoder in words, for reports."""
  return f'{encoder_config.model} of {encoder_config.base_url or "OpenAI"}'


def _vectors(
  encoder_config: Any, texts: Sequence[str]
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
  """Positions in `texts` and their embeddings, f32, as answers come."""
  endpoint = Endpoint(_FIELD, encoder_config)
  # The width is asked for with a text, as an empty one may be refused.
  texts = [text or 'text' for text in texts]
  model, width = encoder_config.model, 0

  def call(client, positions):
    answer = client.embeddings.create(
      model=model, input=[texts[i] for i in positions], encoding_format='float'
    )
    rows = sorted(answer.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(positions))):
      raise BadAnswerError(f'{len(rows)} vectors for {len(positions)} texts')
    try:
      vectors = np.array([row.embedding for row in rows], np.float32)
    except (TypeError, ValueError) as error:
      raise BadAnswerError(f'no table of numbers: {error}') from error
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
      raise BadAnswerError('vectors that are empty or not finite')
    return vectors, answer.usage.total_tokens

  def most(positions):
    # No tokenizer makes more tokens of a text than it has bytes.
    return sum(len(texts[i].encode('utf-8', 'replace')) for i in positions)

  refused = None
  for positions, vectors in endpoint.run(_calls(texts), call, most):
    if isinstance(vectors, Refused):
      refused = refused or (positions, vectors)
      continue
    if width and vectors.shape[1] != width:
      raise InputError(
        f'{_FIELD}.model: {model!r} gave vectors of {vectors.shape[1]} dims '
        f'after some of {width}'
      )
    width = vectors.shape[1]
    yield positions, vectors
  if refused:
    positions, why = refused
    raise InputError(
      f'{_FIELD}.model: {model!r} refuses a call of {len(positions)} texts, '
      f'the first of them {texts[positions[0]][:80]!r} ({why}); what is '
      'finished is kept'
    )


def _calls(texts: Sequence[str]) -> Iterator[list[int]]:
  """Positions of the texts of each call."""
  positions, characters = [], 0
  for i, text in enumerate(texts):
    if positions and (
      len(positions) == _CALL_TEXTS or characters + len(text) > _CALL_CHARACTERS
    ):
      yield positions
      positions, characters = [], 0
    positions.append(i)
    characters += len(text)
  if positions:
    yield positions
