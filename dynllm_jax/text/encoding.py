"""LLM_E: texts to embeddings (SPEC 3.6).

An encoder is a module, which `config.facets.encoder.name` names: a file of
`text/encoders`, `NAME_encoder.py`, by NAME, or any other that Python finds, by
its full name (`config.facets.encoder.name=my_shop.letters`; see plugins.py). An
encoder has

    VERSION: int
    encode(encoder_config: ml_collections.ConfigDict, texts: Sequence[str],
           store: str = '') -> np.ndarray
    identity(encoder_config, store='') -> dict[str, Any]
    describe(encoder_config) -> str

`encode` returns f16[texts, dim], with the same dim whatever the texts, also for
no text at all. An embedding depends only on its own text, not on the others of
the call; an empty text gives zeros.

`identity` returns JSON values: all that embeddings depend on except the text,
such as the VERSION and the fields of `config.facets.encoder`, without those
that only say how fast or at what cost they are computed. Embeddings are found
again on disk by it, and for an encoder from outside by its module's name and
VERSION too: raise VERSION whenever the same text gets another embedding.
`describe` is the encoder in words, for reports.

`store` is a folder in which an encoder may keep what is expensive to compute,
so that interrupted work resumes; '' keeps nothing. An encoder that has a
function `check(encoder_config)` is asked before any work is done. Each function
raises `InputError`, in one line, for a field that is not allowed: the field,
its value and what is allowed.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax import plugins


def encode(
  encoder_config: ml_collections.ConfigDict,
  texts: Sequence[str],
  store: str = '',
) -> np.ndarray:
  """Encodes texts with the encoder that `encoder_config.name` names.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder for the encoder's own use, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if there is no such encoder or one of its fields is not allowed.
  """
  return encoder(encoder_config).encode(encoder_config, texts, store)


def identity(
  encoder_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """All that embeddings depend on except the text, as JSON values.

  Args:
    encoder_config: `config.facets.encoder`.
    store: as for `encode`.

  Raises:
    InputError: if there is no such encoder, or its model cannot be found.
  """
  module = encoder(encoder_config)
  return {
    **module.identity(encoder_config, store),
    **plugins.version(plugins.ENCODERS, module),
  }


def describe(encoder_config: ml_collections.ConfigDict) -> str:
  """The encoder in words, for reports.

  Raises:
    InputError: if there is no such encoder.
  """
  return encoder(encoder_config).describe(encoder_config)


def encoder(encoder_config: ml_collections.ConfigDict) -> Any:
  """The module of the encoder that `encoder_config.name` names.

  Raises:
    InputError: if there is no such encoder.
  """
  return plugins.load(
    plugins.ENCODERS, encoder_config.name, 'config.facets.encoder.name'
  )
