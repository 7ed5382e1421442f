"""Text encoder: the embeddings of an OpenAI-compatible endpoint.

`config.facets.encoder.model` is the name by which the endpoint knows its model.
endpoint.py says how it is called and how calls are limited. Vectors are kept as
they come, in half precision.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.text import embedding_cache
from dynllm_jax.text.endpoint import BadAnswerError
from dynllm_jax.text.endpoint import Endpoint
from dynllm_jax.text.endpoint import Refused
from dynllm_jax.types import InputError

VERSION = 1

_FIELD = 'config.facets.encoder'
# Limits of a call; endpoints allow more.
CALL_TEXTS = 128
_CALL_CHARACTERS = 100_000


def check(encoder_config: ml_collections.ConfigDict) -> None:
  """Checks the field that this encoder reads.

  Raises:
    InputError: if no model is named.
  """
  named = checks.Rule(
    'model', 'the name that the endpoint knows a model by', bool
  )
  checks.check(_FIELD, encoder_config, [named])


def encode(
  encoder_config: ml_collections.ConfigDict,
  texts: Sequence[str],
  store: str = '',
) -> np.ndarray:
  """Encodes texts; the endpoint is only asked for those not in the store.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder in which embeddings are kept, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if a field is not allowed, a limit is reached, or the endpoint
      fails for good or refuses a text. All its answers are in the store.
  """
  return embedding_cache.encode(
    texts,
    lambda missing: _vectors(encoder_config, missing),
    identity(encoder_config),
    store,
    wait_seconds=0,
  )


def identity(
  encoder_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """All that embeddings depend on except the text.

  Raises:
    InputError: if no model is named.
  """
  del store
  check(encoder_config)
  # Without the address, since a server may move.
  return {
    'encoder': 'openai',
    'version': VERSION,
    'model': encoder_config.model,
  }


def describe(encoder_config: ml_collections.ConfigDict) -> str:
  """The encoder in words, for reports."""
  return f'{encoder_config.model} of {encoder_config.base_url or "OpenAI"}'


def _vectors(
  encoder_config: ml_collections.ConfigDict, texts: Sequence[str]
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
  """Positions in `texts` and their embeddings, f32, as answers come."""
  endpoint = Endpoint(_FIELD, encoder_config)
  # An empty text, sent to learn the width, might be refused.
  texts = [text or 'text' for text in texts]
  model, width = encoder_config.model, 0

  def call(client: Any, positions: list[int]) -> tuple[np.ndarray, int]:
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
    # Not every server counts; what is not counted is taken at its most.
    used = answer.usage.total_tokens if answer.usage else most_tokens(positions)
    return vectors, used

  def most_tokens(positions: list[int]) -> int:
    # A text has at most as many tokens as bytes.
    return sum(len(texts[i].encode('utf-8', 'replace')) for i in positions)

  # Other calls go on after a refusal: their answers are paid for and kept.
  refused = None
  for positions, vectors in endpoint.run(_calls(texts), call, most_tokens):
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
  positions: list[int] = []
  characters = 0
  for i, text in enumerate(texts):
    if positions and (
      len(positions) == CALL_TEXTS or characters + len(text) > _CALL_CHARACTERS
    ):
      yield positions
      positions, characters = [], 0
    positions.append(i)
    characters += len(text)
  if positions:
    yield positions
