"""Batched generation with decoders: rows, samples, shared beginnings, forms."""

import json
import subprocess
import sys

import pytest

from dynllm_jax.facets import guided_form
from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.decoding import Rates
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.facets.prompts import parse
from dynllm_jax.text import flax_models
from tests.testing import commands
from tests.testing import model_cases
from tests.testing import ROOT
from tests.testing import tiny_models

BEGINNING = [5, 6, 7, 30, 31, 8]
PROMPTS = [
  [*BEGINNING, 9],
  [*BEGINNING, *range(10, 40)],
  [*BEGINNING, *[20] * 11],
  [*BEGINNING, 9, 8, 7, 6],
]
STOPS = Stops(8, (1,), 0)


@pytest.fixture(name='loaded', scope='module')
def fixture_loaded(tmp_path_factory):
  """A model that looks back through windows and over all."""
  folder = tmp_path_factory.mktemp('gemma3')
  tiny_models.save_case(folder, model_cases.DECODERS['gemma3'])
  return flax_models.load('field', str(folder), 'generator')


@pytest.fixture(name='generate', scope='module')
def fixture_generate(loaded):
  return decoding(loaded)


def decoding(loaded, rows=4, stops=STOPS):
  return Decoding(loaded.model, loaded.params, loaded.mesh, rows, 44, stops)


def test_an_answer_depends_on_prompt_and_seed_alone(generate):
  seeds, hot = [1, 2, 2**62 + 1, 2**40], [1.0, 0.0, 2.0, 0.0]
  answers = generate(PROMPTS, hot, seeds)
  assert generate(PROMPTS[::-1], hot[::-1], seeds[::-1])[::-1] == answers
  assert len(set(map(tuple, answers))) > 2
  # Beside others or alone, and of the same length padded as much.
  assert generate(PROMPTS[1:2], [0.0], [9]) == answers[1:2]
  others = generate([PROMPTS[2]] * 3, [2.0] * 3, [1, 2**61, 2**62 + 1])
  assert len(set(map(tuple, others))) == 3


def test_a_shared_beginning_changes_no_answer(loaded, generate):
  """It is run once; a prompt that begins otherwise is run whole."""
  sharing = decoding(loaded)
  sharing.share(BEGINNING)
  assert sharing.length(38) < generate.length(38)
  expected = generate(PROMPTS, [0.0] * 4, [1] * 4)
  assert sharing(PROMPTS, [0.0] * 4, [1] * 4) == expected
  other = [PROMPTS[1], PROMPTS[3][1:]]
  assert sharing(other, [0.0] * 2, [1] * 2) == generate(
    other, [0.0] * 2, [1] * 2
  )


def test_any_of_several_tokens_ends_an_answer(loaded, generate):
  (answer,) = generate(PROMPTS[1:2], [0.0], [0])
  third = answer[2]
  ending = decoding(loaded, stops=STOPS._replace(ends=(1, third)))
  assert ending(PROMPTS[1:2], [0.0], [0]) == [answer[: answer.index(third)]]


def test_rates_are_of_compiled_programs_and_real_rows(loaded, generate):
  timed = decoding(loaded, rows=2)
  timed._run_chunk, timed._write = generate._run_chunk, generate._write
  timed._make_cache, timed.batch_size = generate._make_cache, 4
  (answer,) = timed(PROMPTS[:1], [0.0], [0])
  assert timed.rates.prompt_tokens == 0
  timed(PROMPTS[:1], [0.0], [0])
  assert timed.rates.prompt_tokens == len(PROMPTS[0])
  assert timed.rates.new_tokens in (len(answer), len(answer) + 1)
  assert timed.rates.prompt_s > 0 and timed.rates.new_s > 0
  assert str(timed.rates).count('tokens/s') == 2 and not str(Rates())


# --------------------------------------------------------------- the form


class Letters:
  """A tokenizer of characters; token 1 ends a text, and 2 is no text."""

  texts = ['#', '<end>', '<mask>', *'abcdefghijklmnop', '",', 'x\n', '."']
  texts += ['{', '"', ':', ' ', ',', '}', *'qrstuvwyz', '\\', '\t']
  all_special_ids = (0, 1, 2)
  added_tokens_decoder: dict = {}

  def __len__(self):
    return len(self.texts)

  def __call__(self, text, add_special_tokens):
    del add_special_tokens
    ids = [self.texts.index(letter) for letter in text]
    return type('Ids', (), {'input_ids': ids})

  def decode(self, ids, skip_special_tokens=False):
    special = self.all_special_ids if skip_special_tokens else ()
    return ''.join(self.texts[i] for i in ids if i not in special)

  def batch_decode(self, rows):
    return [self.decode(row) for row in rows]


def test_no_answer_of_a_guided_model_is_malformed(loaded):
  tokenizer = Letters()
  form = guided_form.make(tokenizer, model_cases.VOCAB, (1,), 70)
  assert (
    form.limit
    == (70 - len('{"crd": "", "int": "", "ctg": "", "brd": ""}')) // 4
  )
  filling = decoding(loaded, stops=STOPS._replace(form=form))
  answers, texts = [], set()
  for seed in range(3):
    rows = filling(PROMPTS, [0.0, 3.0, 5.0, 9.0], [seed] * 4)
    answers += rows
    for row in rows:
      text = guided_form.answer(tokenizer, row)
      assert list(json.loads(text)) == ['crd', 'int', 'ctg', 'brd']
      texts.update(parse(text))
  assert len(texts) > 10
  strings = [string for row in answers for string in row]
  assert {len(string) for string in strings} > {1, form.limit}
  for string in strings:
    # Only its last token may end it, and the limit ends it without one.
    assert not form.ends[string[:-1]].any()
    assert len(string) <= form.limit or form.ends[string[-1]]
    assert form.allowed[string].all()
    assert all(0 < i < len(tokenizer) and i != 2 for i in string)


def test_what_is_forced_is_what_the_model_reads(loaded, generate):
  """The second string is what the model says behind the form up to there."""
  tokenizer = Letters()
  form = guided_form.make(tokenizer, model_cases.VOCAB, (1,), 60)
  filling = decoding(loaded, stops=STOPS._replace(form=form))
  prompt = [*BEGINNING, *guided_form.opening(tokenizer)]
  (row,) = filling([prompt], [0.0], [0])
  # The same by a form of one string, whose prompt has the rest.
  body = [t for t in row[0] if not form.ends[t]]
  joint = form.joints[1][: form.sizes[1]].tolist()
  one = form._replace(joints=form.joints[:1], sizes=form.sizes[:1])
  single = decoding(loaded, stops=STOPS._replace(form=one))
  assert single([[*prompt, *body, *joint]], [0.0], [0]) == [[row[1]]]


def test_a_text_is_cut_at_its_end():
  tokenizer = Letters()
  a, dot = tokenizer.texts.index('a'), tokenizer.texts.index('."')
  line, slash = tokenizer.texts.index('x\n'), tokenizer.texts.index('\\')
  text = guided_form.answer(tokenizer, [[a, dot], [a, line], [1], [slash, a]])
  assert json.loads(text) == {'crd': 'a.', 'int': 'ax', 'ctg': '', 'brd': '\\a'}


def test_a_limit_that_leaves_no_text():
  with pytest.raises(
    ValueError, match='max_output_tokens: 40 is too few .* 48'
  ):
    guided_form.make(Letters(), model_cases.VOCAB, (1,), 40)


# ------------------------------------------------------------ several devices

_DEVICES = """
import json, sys
import jax
import numpy
from tests.facets import test_decoding as tests
loaded = tests.flax_models.load(
  'f', sys.argv[1], 'generator', mesh=tests.flax_models.device_mesh(2)
)
assert dict(loaded.mesh.shape) == {'data': 2, 'tensor': 2}
up = loaded.params['layers_0']['mlp']['up_proj']['kernel']
assert up.addressable_shards[0].data.shape == (24, 20)
one, two = (
  tests.flax_models.load(
    'f', sys.argv[1], 'generator', mesh=mesh, is_int8=True
  ).params
  for mesh in (tests.flax_models.device_mesh(1), loaded.mesh)
)
jax.tree.map(numpy.testing.assert_array_equal, one, two)
for name, part in (('up_proj', (24, 20)), ('down_proj', (20, 24))):
  kernel = two['layers_0']['mlp'][name]['kernel']
  assert kernel.addressable_shards[0].data.shape == part
generate = tests.decoding(loaded, rows=3)
assert generate.batch_size == 4
generate.share(tests.BEGINNING)
print(json.dumps(generate(tests.PROMPTS, [0.0, 1.0, 0.0, 1.0], [1, 2, 3, 4])))
"""


@pytest.mark.slow
def test_a_model_divided_over_devices_says_the_same(loaded, generate):
  done = subprocess.run(
    [sys.executable, '-c', _DEVICES, str(loaded.folder)],
    cwd=ROOT,
    env=commands.on_devices(4),
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert not done.returncode, done.stderr[-2000:]
  assert json.loads(done.stdout.splitlines()[-1]) == generate(
    PROMPTS, [0.0, 1.0, 0.0, 1.0], [1, 2, 3, 4]
  )
