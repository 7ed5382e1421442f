"""LLM_E: texts to embeddings (SPEC 3.6).

An encoder is one file in this folder, found by its name, with

    VERSION: int, raised whenever the same text gets another embedding
    encode(encoder_config, texts, store='') -> f16[texts, dim]
    identity(encoder_config, store='') -> what embeddings follow from but the
        text: JSON values, the VERSION among them
    describe(encoder_config) -> str

`store` is a folder in which an encoder may keep what is dear to compute, so
that broken-off work resumes; '' keeps nothing. An empty text gives zeros.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynllm_jax import plugins


def encode(
  encoder_config: Any, texts: Sequence[str], store: str = ''
) -> np.ndarray:
  """Encodes texts with the encoder that `encoder_config.name` names.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder for the encoder's own use, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if there is no such encoder or a field of its is not allowed.
  """
  return encoder(encoder_config).encode(encoder_config, texts, store)


def identity(encoder_config: Any, store: str = '') -> dict[str, Any]:
  """What embeddings follow from but the text, as JSON values.

  Args:
    encoder_config: `config.facets.encoder`.
    store: as of `encode`.

  Raises:
    InputError: if there is no such encoder, or its model cannot be had.
  """
  module = encoder(encoder_config)
  return {
    **module.identity(encoder_config, store),
    **plugins.version(plugins.ENCODERS, module),
  }


def describe(encoder_config: Any) -> str:
  """The encoder in words, for reports.

  Raises:
    InputError: if there is no such encoder.
  """
  return encoder(encoder_config).describe(encoder_config)


def encoder(encoder_config: Any) -> Any:
  """The module of the encoder that `encoder_config.name` names.

  Raises:
    InputError: if there is no such encoder.
  """
  return plugins.load(
    plugins.ENCODERS, encoder_config.name, 'config.facets.encoder.name'
  )
