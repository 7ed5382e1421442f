"""Facets that are written elsewhere, and those of a shuffled control."""

import json

import numpy as np
import pytest

from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.types import InputError
from experiments import facet_bundle
from experiments import shuffled_writer
from tests.testing import facet_answers
from tests.testing import logs
from tests.testing import model_cases
from tests.testing import tiny_models


@pytest.fixture(name='source')
def fixture_source(tmp_path, monkeypatch):
  """Prompts for a decoder with random weights, whose tokens are letters."""
  monkeypatch.setattr(compressed_prompts, 'SYSTEM', 'be brief')
  monkeypatch.setattr(compressed_prompts, 'EXAMPLES', ())
  config = {**model_cases.DECODERS['llama2'], 'max_position_embeddings': 300}
  tiny_models.save_case(tmp_path / 'llama', config)
  fields = facet_answers.fields(
    name='flax',
    model=str(tmp_path / 'llama'),
    form='guided',
    prompt_version=2,
    max_input_tokens=200,
    max_output_tokens=70,
    batch_size=2,
  ).writer
  log = logs.log_of_events(facet_answers.EVENTS, facet_answers.TITLES)
  rows = windows.profiles(log, facet_answers.WINDOW)
  return facet_bundle.Source(fields, log, rows, str(tmp_path / 'written'))


def test_answers_from_elsewhere_are_those_of_the_writer(source, tmp_path):
  bundle, lines = tmp_path / 'bundle', []
  facet_bundle.prepare(bundle, source, lines.append)
  assert lines[-1].startswith('3 prompts of ')

  # Stopped after the first batch, in the middle of a line.
  facet_bundle.answer(bundle, source.fields, lines.append, seconds=1e-9)
  with open(bundle / 'answers.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"key": "ab')
  facet_bundle.answer(bundle, source.fields, lines.append)
  assert '1 of 3 prompts to answer' in lines
  facet_bundle.keep(bundle, source, lines.append)
  assert '3 distinct prompts, 3 of them finished' in lines[-1]

  here = source._replace(folder=str(tmp_path / 'here'))
  texts = [
    writing.write(s.fields, s.log, s.profiles, s.folder, lines.append).texts
    for s in (source, here)
  ]
  assert texts[0] == texts[1] and len(texts[0]) > 3


def test_answers_of_another_model_are_refused(source, tmp_path):
  bundle = tmp_path / 'bundle'
  with pytest.raises(InputError, match='prompts.json: missing'):
    facet_bundle.answer(bundle, source.fields, print)
  facet_bundle.prepare(bundle, source, print)
  path = bundle / 'prompts.json'
  content = json.loads(path.read_text())
  content['about']['weights'] = 'others'
  path.write_text(json.dumps(content))
  with pytest.raises(InputError, match="weights 'others', and here"):
    facet_bundle.answer(bundle, source.fields, print)


def test_shuffled_users_have_the_window_of_somebody_else():
  log = logs.random_log(5, num_users=30, num_items=20, num_events=400)
  window = int(log.times[-1]) // 4 + 1
  rows = windows.profiles(log, window)
  other = shuffled_writer.shuffled(rows, 0)
  np.testing.assert_array_equal(other.users, rows.users)
  np.testing.assert_array_equal(other.closes, rows.closes)

  for row, close in enumerate(rows.closes):
    events = other.newest(row, 1000)
    assert (log.times[events] // window + 1 == close // window).all()
    (owner,) = set(log.users[events])
    alone = (rows.closes == close).sum() == 1
    assert (owner == rows.users[row]) == alone
  # Every window's texts are there as often as before.
  np.testing.assert_array_equal(np.sort(other.first), np.sort(rows.first))
  assert not np.array_equal(
    other.first, shuffled_writer.shuffled(rows, 1).first
  )
