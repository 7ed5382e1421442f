"""Fields of a config.json: those that are read, and refusal of all others.

A field that a model of ours does not know may change what the model computes,
so that it is an error; only those that training, generation or other programs
read are passed over.
"""

from collections.abc import Iterable
import pathlib
from typing import Any

from dynllm_jax.types import InputError

# They say nothing of what a trained network computes from a text.
_PASSED_OVER = {
  'architectures',
  'auto_map',
  'bad_words_ids',
  'begin_suppress_tokens',
  'bos_token_id',
  'cache_implementation',
  'chunk_size_feed_forward',
  'decoder_start_token_id',
  'diversity_penalty',
  'do_sample',
  'dtype',
  'early_stopping',
  'encoder_no_repeat_ngram_size',
  'eos_token_id',
  'exponential_decay_length_penalty',
  'finetuning_task',
  'forced_bos_token_id',
  'forced_eos_token_id',
  'gradient_checkpointing',
  'id2label',
  'initializer_range',
  'is_encoder_decoder',
  'label2id',
  'length_penalty',
  'max_length',
  'min_length',
  'model_type',
  'no_repeat_ngram_size',
  'num_beam_groups',
  'num_beams',
  'num_return_sequences',
  'output_attentions',
  'output_hidden_states',
  'output_past',
  'output_scores',
  'pad_token_id',
  'prefix',
  'pretraining_tp',
  'problem_type',
  'remove_invalid_values',
  'repetition_penalty',
  'return_dict',
  'return_dict_in_generate',
  'sep_token_id',
  'suppress_tokens',
  'task_specific_params',
  'temperature',
  'tf_legacy_loss',
  'tokenizer_class',
  'top_k',
  'top_p',
  'torch_dtype',
  'torchscript',
  'transformers_version',
  'typical_p',
  'unsloth_fixed',
  'use_bfloat16',
  'use_cache',
  'transformers.js_config',
}
# Probabilities and rates of training.
_TRAINING = ('dropout', '_drop', 'init', 'loss_', 'deterministic_')


def check(
  place: pathlib.Path,
  raw: dict[str, Any],
  read: Iterable[str],
  fixed: dict[str, tuple[Any, ...]],
) -> None:
  """Checks that every field is understood.

  Args:
    place: the config.json, for messages.
    raw: its content.
    read: fields that the model reads.
    fixed: fields that must have one of the given values.

  Raises:
    InputError: naming the first field, in the order of the alphabet, that is
      not understood, or has a value that is not.
  """
  known = {*read, *_PASSED_OVER, *fixed}
  for name, value in sorted(raw.items()):
    if name in fixed and value not in fixed[name]:
      raise InputError(
        f'{place}: {name} {value!r} is not understood; allowed: '
        f'{" or ".join(map(repr, fixed[name]))}'
      )
    if name in known or name.startswith('_'):
      continue
    if any(part in name for part in _TRAINING):
      continue
    raise InputError(
      f'{place}: the field {name} ({value!r}) is not understood, and may '
      f'change what the model computes; allowed: {", ".join(sorted(read))}'
    )
