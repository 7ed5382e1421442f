"""The writer that runs a model here, with models of random weights."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import prompts
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.facets.writers import flax_writer
from dynllm_jax.storage.store import Store
from dynllm_jax.text import flax_models
from dynllm_jax.types import InputError
from tests.testing import facet_answers
from tests.testing import model_cases
from tests.testing import tiny_models

INPUT, OUTPUT = 190, 6


@pytest.fixture(name='log')
def fixture_log(make_log):
  return make_log(
    facet_answers.EVENTS, facet_answers.TITLES, brands=facet_answers.BRANDS
  )


@pytest.fixture(autouse=True)
def fixture_short(monkeypatch):
  """Every letter is a token of these models, so few letters."""
  monkeypatch.setattr(prompts, 'SYSTEM', 'say json')


@pytest.fixture(name='folder', scope='module')
def fixture_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('gpt2')
  tiny_models.save(folder, 'gpt2', n_positions=INPUT + OUTPUT)
  return folder


def fields(folder, **changes):
  """`config.facets` of the model in a folder, in small batches."""
  return facet_answers.fields(
    name='flax',
    **{
      'model': str(folder),
      'max_input_tokens': INPUT,
      'max_output_tokens': OUTPUT,
      'batch_size': 2,
      'max_attempts': 2,
      'max_failure_rate': 1.0,
      **changes,
    },
  )


def write(folder, log, store, report=lambda line: None, **changes):
  return writing.write(
    fields(folder, **changes).writer,
    log,
    windows.profiles(log, facet_answers.WINDOW),
    str(store),
    report,
  )


@pytest.fixture(name='batches')
def fixture_batches(monkeypatch):
  """A model that answers well, and a list of the batches that it got."""
  got = []

  class Model:
    """Stands in for `generation.Generator`: token ids are its answers."""

    batch_size, length = 2, staticmethod(lambda tokens: -(-tokens // 16) * 16)

    def __call__(self, ids, temperatures, seeds):
      got.append((ids, temperatures, seeds))
      return ids

  class Tokenizer:
    """A letter a token, and answers in place of prompts when it decodes."""

    chat_template = None

    def __call__(self, texts, add_special_tokens):
      ids = [list(map(ord, text)) for text in texts]
      return transformers.BatchEncoding({'input_ids': ids})

    def decode(self, ids, skip_special_tokens):
      return facet_answers.good(''.join(map(chr, ids)))

  monkeypatch.setattr(flax_writer, 'load_tokenizer', lambda name: Tokenizer())
  monkeypatch.setattr(flax_writer, 'load_generator', lambda *args: Model())
  return got


def test_answers_become_facets(log, folder, tmp_path, batches):
  got = write(folder, log, tmp_path, max_input_tokens=500)
  assert [got.texts[k] for k in got.index[0]] == [
    'buys on 2021-01-04',
    'rose mascara',
    'unknown',
    'Acme',
  ]
  assert got.num_failed == 0
  prompt = ''.join(map(chr, batches[0][0][0]))
  assert prompt.startswith('say json\n\nPurchases') and prompt.endswith(
    '\n\nAnswer:\n'
  )
  # Three prompts of one length and a longer one, two at a time.
  assert sorted(len(ids) for ids, _, _ in batches) == [1, 1, 2]
  for ids, temperatures, _ in batches:
    assert len({-(-len(i) // 16) for i in ids}) == 1
    assert set(temperatures) == {0.0}
  assert write(folder, log, tmp_path, max_input_tokens=500).texts == got.texts
  assert len(batches) == 3


def test_a_real_model_runs_fails_and_resumes(log, folder, tmp_path):
  """Random weights write no JSON; every call is kept all the same."""
  lines = []
  with pytest.raises(InputError, match='4 of 4 prompts .*not JSON'):
    write(folder, log, tmp_path, lines.append, max_failure_rate=0.5)
  assert any('loading' in line for line in lines)
  lines.clear()
  got = write(folder, log, tmp_path, lines.append)
  assert got.num_failed == 5 and not got.index.any()
  assert len(lines) == 1 and '4 of them finished' in lines[0]
  (store,) = tmp_path.iterdir()
  assert (store / 'index.bin').stat().st_size == 32 * 4 * 2
  about = json.loads((store / 'about.json').read_text())
  assert about['name'] == 'flax' and about['model'] == str(folder)
  assert about['prompt_version'] == prompts.VERSION and about['weights']


@pytest.fixture(name='llama', scope='module')
def fixture_llama(tmp_path_factory):
  """A decoder of this package."""
  folder = tmp_path_factory.mktemp('llama')
  config = {**model_cases.DECODERS['llama2'], 'max_position_embeddings': 300}
  tiny_models.save_case(folder, config)
  return folder


def test_a_guided_model_fails_never(log, llama, tmp_path):
  """Random weights too: the form is given, and texts are what they are."""
  fields = {'form': 'guided', 'max_output_tokens': 60, 'max_input_tokens': 200}
  got = write(llama, log, tmp_path, max_failure_rate=0.0, **fields)
  assert got.num_failed == 0
  assert sum(map(bool, got.texts)) > 4
  stored = answers(tmp_path)
  assert len(stored) == facet_answers.NUM_PROMPTS
  for value in stored.values():
    reply = json.loads(value)
    assert list(json.loads(reply['answer'])) == ['crd', 'int', 'ctg', 'brd']
    assert 4 <= reply['output_tokens'] <= 60
  (path,) = tmp_path.iterdir()
  assert json.loads((path / 'about.json').read_text())['form'] == 'guided'


def test_a_class_of_transformers_fills_no_form(log, folder, tmp_path):
  with pytest.raises(
    InputError, match=r"writer\.form: 'guided' .*free, as .* 'gpt2'"
  ):
    write(folder, log, tmp_path, form='guided', max_output_tokens=4)


def answers(store):
  """The content of the only store in a folder."""
  (path,) = store.iterdir()
  about = json.loads((path / 'about.json').read_text())
  opened = Store(path, about)
  return {key: opened.read(row) for row, key in enumerate(opened.keys(0))}


def test_batches_and_order_change_no_answer(log, folder, tmp_path):
  """Samples too, and a resumed run says what an unbroken one would."""
  for name, size in (('two', 2), ('three', 3)):
    write(folder, log, tmp_path / name, batch_size=size, temperature=1.0)
  assert answers(tmp_path / 'two') == answers(tmp_path / 'three')


def test_causal(make_log, folder, tmp_path, batches):
  """Purchases at and after a close change no facet that serves up to it."""
  close = 2 * facet_answers.WINDOW
  early = [event for event in facet_answers.EVENTS if event[2] < close]
  late = [(1, 3, close), (2, 1, close + 5), (3, 1, 3 * facet_answers.WINDOW)]
  served = []
  for name, events in (('a', facet_answers.EVENTS), ('b', early + late)):
    log = make_log(
      events, facet_answers.TITLES, brands=facet_answers.BRANDS, num_users=3
    )
    got, about = facet_bank.build(
      fields(folder, max_input_tokens=500),
      log,
      str(tmp_path / name),
      lambda line: None,
    )
    users = np.tile(np.arange(4, dtype=np.int32), 2)
    times = np.repeat(np.array([close // 2, close], np.int32), 4)
    rows = np.asarray(lookup(got, users, times))
    assert rows.any()
    served.append(got.texts[rows].tobytes())
  assert served[0] == served[1]
  assert 'language model' in about['writer'] and 'float32' in about['writer']


def test_a_finished_bank_needs_no_model(log, tmp_path, batches, monkeypatch):
  tiny_models.save(tmp_path / 'model', 'gpt2')
  config = fields(tmp_path / 'model', max_input_tokens=500)
  got, about = facet_bank.build(config, log, str(tmp_path), lambda line: None)
  (tmp_path / 'model').rename(tmp_path / 'gone')
  monkeypatch.setitem(sys.modules, 'transformers', None)
  again, about_again = facet_bank.build(config, log, str(tmp_path))
  assert about == about_again
  np.testing.assert_array_equal(got.index, again.index)


def test_another_model_of_the_same_name_is_another_bank(log, tmp_path, batches):
  tiny_models.save(tmp_path / 'model', 'gpt2')
  config = fields(tmp_path / 'model', max_input_tokens=500)
  places = [facet_bank.folder_of(config, log, str(tmp_path))]
  config.writer.batch_size = 7
  assert facet_bank.folder_of(config, log, str(tmp_path)) == places[0]
  tiny_models.save(tmp_path / 'model', 'gpt2', seed=1)
  assert facet_bank.folder_of(config, log, str(tmp_path)) != places[0]


def test_chat_templates(folder, monkeypatch):
  pytest.importorskip('jinja2')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  loop = (
    '{% for m in messages %}[CLS] {{ m.role }} {{ m.content }} [SEP]'
    '{% endfor %}{% if add_generation_prompt %} a{% endif %}'
  )
  tokenizer.chat_template = loop

  def read(message, version=1):
    writer = fields(folder, prompt_version=version).writer
    (ids,) = flax_writer.prompt_ids(writer, tokenizer, [message])
    return tokenizer.decode(ids).replace(' ##', '')

  monkeypatch.setattr(compressed_prompts, 'SYSTEM', 'be brief')
  monkeypatch.setattr(compressed_prompts, 'EXAMPLES', (('he', 'is'),))

  assert read('hi') == ('[CLS] system say json [SEP] [CLS] user hi [SEP] a')
  assert read('hi', 2) == (
    '[CLS] system be brief [SEP] [CLS] user he [SEP] [CLS] assistant is [SEP] '
    '[CLS] user hi [SEP] a'
  )
  # As Gemma's does.
  tokenizer.chat_template = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}"
    '{% endif %}' + loop
  )
  assert read('hi') == '[CLS] user say json hi [SEP] a'
  assert read('hi', 2) == (
    '[CLS] user be brief he [SEP] [CLS] assistant is [SEP] [CLS] user hi [SEP] '
    'a'
  )
  tokenizer.chat_template = None
  assert read('hi') == '[CLS] say json hi answer [UNK] [SEP]'
  assert read('hi', 2) == (
    '[CLS] be brief he answer [UNK] is hi answer [UNK] [SEP]'
  )


def test_ends_come_from_wherever_they_are_stated(folder, tmp_path):
  loaded = flax_models.load('field', str(folder), 'generator')
  tokenizer = loaded.tokenizer
  assert flax_writer.end_tokens(loaded, tokenizer) == [3]
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7, 3]}')
  other = dataclasses.replace(loaded, folder=tmp_path)
  assert flax_writer.end_tokens(other, tokenizer) == [7, 3]
  loaded.config.eos_token_id = None
  with pytest.raises(InputError, match='names no token that ends a text'):
    flax_writer.end_tokens(loaded, tokenizer)


def test_half_precision(folder):
  generator = flax_writer.load_generator(
    fields(folder, dtype='bfloat16').writer,
    flax_writer.load_tokenizer(str(folder)),
  )
  leaves = {leaf.dtype for leaf in jax.tree.leaves(generator._params)}
  assert leaves == {jnp.dtype('bfloat16')}
  assert len(generator([[7, 8]], [0.0], [0])[0]) <= OUTPUT


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model': ''}, r"config\.facets\.writer\.model: ''"),
    ({'model': '/nowhere/at/all'}, "'/nowhere/at/all' is not a directory"),
    ({'form': 'json'}, r'writer\.form: .json. is not .* free, guided'),
    (
      {'devices_per_copy': 7},
      r'writer\.devices_per_copy: 7 .* a divisor of \d+, the devices',
    ),
    ({'dtype': 'int8'}, r'config\.facets\.writer\.dtype: .* float32, bfloat16'),
    ({'weights': 'int4'}, r'config\.facets\.writer\.weights: .* full, int8'),
    (
      {'weights': 'int8'},
      r"'gpt2', whose weights cannot have eight bits; allowed: gemma, .*",
    ),
    ({'batch_size': 0}, r'config\.facets\.writer\.batch_size: 0'),
    ({'max_input_tokens': 9}, 'max_input_tokens: 9 is too few .* allowed: '),
    (
      {'max_output_tokens': 7},
      rf'{INPUT} with max_output_tokens 7 .* '
      f'allowed: {INPUT + OUTPUT} together',
    ),
  ],
)
def test_bad_fields(log, folder, tmp_path, changes, words):
  with pytest.raises(InputError, match=words):
    write(folder, log, tmp_path / 'store', **changes)


def test_bad_models(log, folder, tmp_path, monkeypatch):
  tiny_models.save(tmp_path / 'bert', 'bert')
  config = json.loads((tmp_path / 'bert' / 'config.json').read_text())
  (tmp_path / 'bert' / 'config.json').write_text(
    json.dumps({**config, 'model_type': 'vit'})
  )
  with pytest.raises(InputError, match=r"writer\.model: .*'vit'.*gpt2"):
    write(tmp_path / 'bert', log, tmp_path / 'store')
  (tmp_path / 'bert' / 'model.safetensors').unlink()
  with pytest.raises(InputError, match=r'writer\.model: .* has no weights in'):
    write(tmp_path / 'bert', log, tmp_path / 'store')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  with pytest.raises(InputError, match=r'writer\.model: .*Hub cannot be'):
    write('nobody/nothing', log, tmp_path / 'store')
