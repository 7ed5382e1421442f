"""What weights of eight bits change: answers, memory and speed.

    python -m experiments.int8_weights --model=smollm2

The same prompts, one for each of some titles of the demo's catalogue, are
answered greedily with `facets.writer.weights` full and int8, in turn, by a
model that has a chat template. Then both read the prompts with the full one's
answers, and their logits are compared at every token of these answers.
"""

import functools
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.progress import say
from dynllm_jax.text import decoder
from dynllm_jax.text import flax_models
from dynllm_jax.text.decoder import Decoder
from dynllm_jax.types import Array
from experiments import pages

_MODEL = flags.DEFINE_string('model', None, "A model's folder.", required=True)
_PROMPTS = flags.DEFINE_integer('prompts', 48, 'How many.')
_BATCH = flags.DEFINE_integer('batch', 16, 'Prompts of a batch.')
_NEW = flags.DEFINE_integer('new', 48, 'Tokens of an answer.')

_KINDS = ('full', 'int8')
_ASKED = 'Describe "{}" in two sentences, for somebody who might buy it.'


def main(argv: list[str]) -> None:
  """Answers with both, compares, and prints the tables."""
  del argv
  models = {
    kind: flax_models.load(
      '--model', _MODEL.value, 'generator', is_int8=kind == 'int8'
    )
    for kind in _KINDS
  }
  prompts = _prompts(models['full'].tokenizer)
  makers = {kind: _decoding(loaded, prompts) for kind, loaded in models.items()}

  answers: dict[str, list[list[int]]] = {kind: [] for kind in _KINDS}
  rows = _BATCH.value
  # The first batch compiles, and so its time is not counted: it comes twice.
  for at in (0, *range(0, len(prompts), rows)):
    some = prompts[at : at + rows]
    zeros = [0] * len(some)
    for kind, make in makers.items():
      answers[kind][at:] = make(some, zeros, zeros)

  say('\n'.join([*_speeds(models, makers), '']))
  say('\n'.join(_differences(models, prompts, answers)))


def _prompts(tokenizer: Any) -> list[list[int]]:
  """Token ids of the prompts, each a question of one title."""
  fields = config_lib.default().data
  fields.source, fields.size = 'simulated', 'demo'
  log = loading.load(fields, say)
  titles = sorted(set(map(str, log.titles)) - {''})
  chosen = np.random.default_rng(0).choice(titles, _PROMPTS.value, False)
  texts = [
    tokenizer.apply_chat_template(
      [{'role': 'user', 'content': _ASKED.format(title)}],
      tokenize=False,
      add_generation_prompt=True,
    )
    for title in chosen
  ]
  return tokenizer(texts, add_special_tokens=False).input_ids


def _decoding(loaded: Any, prompts: list[list[int]]) -> Decoding:
  """What continues prompts; no token ends an answer."""
  longest = max(map(len, prompts))
  decoding = Decoding(
    loaded.model,
    loaded.params,
    loaded.mesh,
    _BATCH.value,
    longest,
    Stops(_NEW.value, (), 0),
  )
  decoding.buckets = (longest,)
  return decoding


def _speeds(models: dict[str, Any], makers: dict[str, Decoding]) -> list[str]:
  """Memory and speed, a row for each kind."""
  rows = []
  for kind, make in makers.items():
    rates = make.rates
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(models[kind].params))
    rows.append(
      [
        kind,
        f'{size / 1e6:,.0f}',
        f'{rates.prompt_tokens / rates.prompt_s:,.0f}',
        f'{rates.new_tokens / rates.new_s:,.0f}',
      ]
    )
  head = ['weights', 'MB', 'prefill, tokens/s', 'decode, tokens/s']
  return pages.table(head, rows)


def _differences(
  models: dict[str, Any],
  prompts: list[list[int]],
  answers: dict[str, list[list[int]]],
) -> list[str]:
  """How the answers and the logits behind them differ, in words."""
  full, small = (np.array(answers[kind]) for kind in _KINDS)
  longest = max(map(len, prompts)) + _NEW.value
  tokens = np.zeros((len(prompts), longest), np.int32)
  told = np.zeros((len(prompts), longest - 1), bool)
  lengths = np.zeros(len(prompts), np.int32)
  for row, prompt in enumerate(prompts):
    text = [*prompt, *full[row]]
    tokens[row, : len(text)], lengths[row] = text, len(text)
    told[row, len(prompt) - 1 : len(text) - 1] = True

  compare = jax.jit(
    functools.partial(_compare, [models[kind].model for kind in _KINDS])
  )
  with jax.default_matmul_precision('highest'):
    found = compare([models[kind].params for kind in _KINDS], tokens, lengths)
  spread, error, same, gain = (np.asarray(part)[told] for part in found)
  return [
    f'{len(prompts)} prompts, {_NEW.value} tokens of answer each.',
    f'Answers that are equal: {(full == small).all(1).mean():.1%}; tokens at '
    f'the beginning that agree: {_before(full == small):.1f} on average.',
    f'Behind the same words, the likeliest token is the same at '
    f'{same.mean():.1%} of {same.size:,} tokens.',
    f'Logits differ by {np.sqrt((error**2).mean()):.3f} (root mean square), '
    f'their own deviation being {spread.mean():.2f}.',
    f'Mean log-probability of the full answers: {gain.mean():+.4f} with int8 '
    f'(standard error {gain.std() / np.sqrt(gain.size):.4f}).',
  ]


def _before(same: np.ndarray) -> float:
  """Tokens of answers before the first that differs (all, if none does)."""
  return float(same.cumprod(1).sum(1).mean())


def _compare(
  pair: list[Decoder], params: list[Any], tokens: Array, lengths: Array
) -> Any:
  """Two models at all positions of texts but the last.

  Args:
    pair: the models.
    params: of both.
    tokens: i32[texts, longest].
    lengths: i32[texts].

  Returns:
    Each [texts, longest - 1]: the standard deviation of the first one's
    logits, the root mean square of their difference, whether the likeliest
    token is the same, and by how much the second one's log-probability of the
    next token is higher.
  """

  def of_text(text: tuple[jax.Array, jax.Array]) -> Any:
    ids, length = text[0][None], text[1][None]
    logits = []
    for model, weights in zip(pair, params):
      hidden, _ = decoder.run(model, weights, ids, decoder.whole(ids, length))
      logits.append(decoder.next_logits(model, weights, hidden[0, :-1]))
    first, second = logits
    next_ones = ids[0, 1:, None]
    chances = [
      jnp.take_along_axis(jax.nn.log_softmax(some), next_ones, 1)[:, 0]
      for some in logits
    ]
    error = jnp.sqrt(((second - first) ** 2).mean(-1))
    same = first.argmax(-1) == second.argmax(-1)
    return first.std(-1), error, same, chances[1] - chances[0]

  return jax.lax.map(of_text, (jnp.asarray(tokens), jnp.asarray(lengths)))


if __name__ == '__main__':
  app.run(main)
