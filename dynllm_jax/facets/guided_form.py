"""The answer's form, forced token by token (SPEC 8.2).

The model fills the four strings of the JSON object and writes nothing else, so
that no answer is malformed, and a small model need not know what JSON is.
"""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from dynllm_jax.facets.decoding import Form
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError

_ENDS = ('"', '\n')


def joints(names: Sequence[str] = FACETS) -> tuple[str, ...]:
  """What stands before each string; the first of them ends the prompt.

  Args:
    names: of the strings.
  """
  return tuple(
    ('", ' if number else '{') + f'"{name}": "'
    for number, name in enumerate(names)
  )


def opening(tokenizer: Any, names: Sequence[str] = FACETS) -> list[int]:
  """Token ids of what stands before the first string."""
  return _ids(tokenizer, joints(names)[0])


def make(
  tokenizer: Any,
  vocab_size: int,
  ends: Sequence[int],
  max_tokens: int,
  names: Sequence[str] = FACETS,
) -> Form:
  """The form for a model.

  Args:
    tokenizer: of the model.
    vocab_size: of its logits, which may be more than the tokenizer's.
    ends: tokens that end an answer; here they end a string.
    max_tokens: of a whole answer; the strings share what the form leaves.
    names: of the strings.

  Raises:
    InputError: if no token is left for the strings.
  """
  leads = [_ids(tokenizer, joint) for joint in joints(names)]
  forced = sum(map(len, leads)) + len(_ids(tokenizer, '"}'))
  limit = (max_tokens - forced) // len(leads)
  if limit < 1:
    raise InputError(
      f'config.facets.writer.max_output_tokens: {max_tokens} is too few for '
      f'the form, which has {forced}; allowed: {forced + len(leads)} or more'
    )

  padded = np.zeros((len(leads), max(map(len, leads))), np.int32)
  for row, lead in enumerate(leads):
    padded[row, : len(lead)] = lead
  sizes = np.array([len(lead) for lead in leads], np.int32)
  return Form(padded, sizes, *_classes(tokenizer, vocab_size, ends), limit)


def answer(
  tokenizer: Any,
  strings: Sequence[Sequence[int]],
  names: Sequence[str] = FACETS,
) -> str:
  """The JSON object of four strings.

  Args:
    tokenizer: of the model.
    strings: token ids of each, with the one that ended it, if any.
    names: of the strings.
  """
  texts = []
  for ids in strings:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    # The token that ended it may have begun with letters of it; half a letter
    # is left where the limit cut it.
    for end in _ENDS:
      text = text.partition(end)[0]
    texts.append(text.rstrip('\N{REPLACEMENT CHARACTER}').strip())
  return json.dumps(dict(zip(names, texts)), ensure_ascii=False)


def _ids(tokenizer: Any, text: str) -> list[int]:
  return tokenizer(text, add_special_tokens=False).input_ids


def _classes(
  tokenizer: Any, vocab_size: int, ends: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens that end a string, and those that a string may have or end with.

  Returns:
    Two of bool[vocab].
  """
  known = min(len(tokenizer), vocab_size)
  pieces = tokenizer.batch_decode([[token] for token in range(known)])
  is_end, allowed = np.zeros((2, vocab_size), bool)
  is_end[:known] = [any(end in piece for end in _ENDS) for piece in pieces]
  allowed[:known] = True
  for token in _special(tokenizer):
    if token < vocab_size:
      allowed[token] = is_end[token] = False
  is_end[list(ends)] = allowed[list(ends)] = True
  return is_end, allowed


def _special(tokenizer: Any) -> set[int]:
  """Tokens that are not text."""
  added = tokenizer.added_tokens_decoder
  return {
    *tokenizer.all_special_ids,
    *(token for token, what in added.items() if what.special),
  }
