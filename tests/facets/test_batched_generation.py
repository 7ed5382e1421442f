"""Batched generation, against one prompt at a time without cache or padding."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.facets.batched_generation import Generator
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.text import flax_models
from tests.testing import commands
from tests.testing import ROOT
from tests.testing import tiny_models

KINDS = ('gpt2', 't5')
PROMPTS = [[7, 8, 9], list(range(5, 45)), [20] * 11, [9, 8, 7, 6, 5]]
NEW = 6


def load(folder, kind, **settings):
  if kind == 'gpt2':
    settings['n_positions'] = 64
  tiny_models.save(folder, kind, **settings)
  return flax_models.load('field', str(folder), 'generator')


def generator(loaded, batch_size=4, ends=(3,), new=NEW):
  return Generator(
    loaded.model, loaded.params, batch_size, 44, Stops(new, ends, 0)
  )


def likeliest(loaded, prompt, answer):
  """The likeliest token after the prompt and each beginning of the answer.

  In one pass, without a cache, without padding, without other prompts.
  """
  if loaded.model.config.is_encoder_decoder:
    text = [loaded.model.config.decoder_start_token_id, *answer]
    kwargs = {'decoder_input_ids': jnp.array([text])}
    text, first = prompt, 0
  else:
    text, kwargs, first = [*prompt, *answer], {}, len(prompt) - 1
  logits = jax.jit(
    lambda params: (
      loaded.model(jnp.array([text]), params=params, **kwargs).logits
    )
  )(loaded.params)
  return np.asarray(logits[0, first:].argmax(-1)).tolist()


@pytest.mark.parametrize(
  'kind',
  [
    KINDS[0],
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:]),
  ],
)
def test_a_padded_batch_says_what_each_prompt_says_alone(tmp_path, kind):
  loaded = load(tmp_path, kind)
  generate = generator(loaded)
  together = generate(PROMPTS, [0.0] * 4, [1, 2, 3, 4])
  alone = [generate([prompt], [0.0], [9])[0] for prompt in PROMPTS]
  assert together == alone
  assert len(set(map(tuple, together))) > 1
  for prompt, answer in list(zip(PROMPTS, together))[:2]:
    expected = likeliest(loaded, prompt, answer)
    assert answer == expected[: len(answer)]
    assert len(answer) == NEW or expected[-1] == 3  # it ended itself


@pytest.fixture(name='small', scope='module')
def fixture_small(tmp_path_factory):
  return load(tmp_path_factory.mktemp('small'), 'gpt2')


def test_a_sample_depends_on_prompt_and_seed_alone(small):
  generate = generator(small)
  seeds, hot = [1, 2, 2**62 + 1, 2**40], [1.0, 0.0, 2.0, 1.0]
  answers = generate(PROMPTS, hot, seeds)
  back = generate(PROMPTS[::-1], hot[::-1], seeds[::-1])[::-1]
  assert answers == back
  assert answers[2] == generate(PROMPTS[2:3], [2.0], [2**62 + 1])[0]
  others = [generate(PROMPTS[2:3], [2.0], [seed])[0] for seed in (1, 2**61)]
  assert answers[2] not in others and others[0] != others[1]
  # A greedy row stays greedy beside sampled ones.
  assert answers[1] == generate(PROMPTS[1:2], [0.0], [5])[0]


@pytest.mark.slow
def test_samples_follow_the_softmax(small):
  """Shares of the first token over many seeds, at a temperature of 2."""
  rows, prompt = 2048, PROMPTS[0]
  generate = generator(small, rows, ends=(3,), new=1)
  answers = generate([prompt] * rows, [2.0] * rows, range(rows))
  logits = small.model(jnp.array([prompt]), params=small.params).logits[0, -1]
  expected = np.asarray(jax.nn.softmax(logits / 2), float)
  shares = (
    np.bincount(
      [answer[0] if answer else 3 for answer in answers],
      minlength=len(expected),
    )
    / rows
  )
  deviation = np.sqrt(expected * (1 - expected) / rows)
  assert (np.abs(shares - expected) < 5 * deviation + 1 / rows).all()
  assert expected.max() > 2 / len(expected)


def test_any_of_several_tokens_ends_an_answer(small):
  """What the model says up to its third token, which is an end now."""
  (answer,) = generator(small, 1)(PROMPTS[1:2], [0.0], [0])
  third = answer[2]
  (cut,) = generator(small, 1, ends=(3, third))(PROMPTS[1:2], [0.0], [0])
  assert cut == answer[: answer.index(third)]


_TWO_DEVICES = """
import json, pathlib, sys
import jax
from tests.facets import test_batched_generation as tests
assert jax.local_device_count() == 2
loaded = tests.flax_models.load('field', sys.argv[1], 'generator')
generate = tests.generator(loaded, batch_size=3)
assert generate.batch_size == 4
print(json.dumps(generate(tests.PROMPTS, [0.0, 1.0, 0.0, 1.0], [1, 2, 3, 4])))
"""


@pytest.mark.slow
def test_two_devices_say_the_same(small):
  done = subprocess.run(
    [sys.executable, '-c', _TWO_DEVICES, str(small.folder)],
    cwd=ROOT,
    env=commands.on_devices(2),
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert not done.returncode, done.stderr[-2000:]
  assert json.loads(done.stdout.splitlines()[-1]) == generator(small)(
    PROMPTS, [0.0, 1.0, 0.0, 1.0], [1, 2, 3, 4]
  )
