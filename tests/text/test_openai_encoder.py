"""The encoder `openai`, against a local server."""

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.text import encoding
from dynllm_jax.text import endpoint
from dynllm_jax.text.encoders import openai_encoder
from dynllm_jax.types import InputError
from tests.testing import fake_endpoint

TEXTS = [f'text {n} ' + 'x' * n for n in range(20)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(openai_encoder, 'CALL_TEXTS', 4)
  monkeypatch.setattr(endpoint, 'MAX_DELAY', 0.01)


def config_for(server, **fields):
  config = config_lib.default().facets.encoder
  config.name, config.model, config.base_url = 'openai', 'm', server.url
  config.num_retries = 2
  for name, value in fields.items():
    config[name] = value
  return config


def vector_of(text):
  return [len(text), text.count('x') / 2, -1]


def answer_with(change=lambda rows: rows):
  """Answers with the vectors of all texts, whose rows `change` may spoil."""

  def answer(body, number):
    del number
    reply = fake_endpoint.embeddings(map(vector_of, body['input']))
    return 200, {**reply, 'data': change(reply['data'])}

  return answer


def expected(texts):
  return [vector_of(text) if text else [0, 0, 0] for text in texts]


def test_texts_are_asked_for_once(tmp_path):
  texts = ['', *TEXTS, TEXTS[3], '']
  with fake_endpoint.serve(answer_with()) as server:
    config = config_for(server)
    first = encoding.encode(config, texts[:9], str(tmp_path))
    both = encoding.encode(config, texts, str(tmp_path))
  assert first.dtype == np.float16
  assert first.tolist() == expected(texts[:9])
  assert both.tolist() == expected(texts)
  asked = [text for call in server.calls for text in call['input']]
  assert sorted(asked) == sorted(TEXTS)
  assert all(
    len(call['input']) <= 4 and call['model'] == 'm' for call in server.calls
  )
  # A finished store needs no server, no key and no package.
  again = encoding.encode(config, texts, str(tmp_path))
  np.testing.assert_array_equal(again, both)


def test_rows_out_of_order_and_only_empty_texts():
  change = lambda rows: rows[::-1]
  with fake_endpoint.serve(answer_with(change)) as server:
    out = encoding.encode(config_for(server), TEXTS)
    assert out.tolist() == expected(TEXTS)
    assert (
      encoding.encode(config_for(server), ['', '']).tolist() == [[0] * 3] * 2
    )


@pytest.mark.parametrize(
  'change',
  [
    lambda rows: rows[:-1],
    lambda rows: rows + rows[:1],
    lambda rows: [{**row, 'embedding': None} for row in rows],
    lambda rows: [{**row, 'embedding': 'abc'} for row in rows],
    lambda rows: [{**row, 'embedding': []} for row in rows],
    lambda rows: [{**row, 'embedding': [1] * i} for i, row in enumerate(rows)],
    lambda rows: 'rows',
  ],
)
def test_a_malformed_answer_is_asked_for_again(change):
  def answer(body, number):
    spoil = change if number == 0 else lambda rows: rows
    return answer_with(spoil)(body, number)

  with fake_endpoint.serve(answer) as server:
    out = encoding.encode(config_for(server, concurrency=1), TEXTS)
  assert out.tolist() == expected(TEXTS)
  assert len(server.calls) == 6


@pytest.mark.parametrize(
  'failure, match',
  [
    ((400, {'error': {'message': 'too long'}}), "refuses a call .*'text 8"),
    ((500, {}), 'failed 3 times in a row'),
    ((401, {}), 'OPENAI_API_KEY: refused'),
  ],
)
def test_what_is_finished_is_kept(tmp_path, failure, match):
  def answer(body, number):
    bad = TEXTS[8] in body['input'] and not mended
    return failure if bad else answer_with()(body, number)

  mended = []
  with fake_endpoint.serve(answer) as server:
    config = config_for(server, concurrency=1)
    with pytest.raises(InputError, match=match):
      encoding.encode(config, TEXTS, str(tmp_path))
    answered = {text for call in server.calls for text in call['input']}
    server.calls.clear()
    mended.append(True)
    out = encoding.encode(config, TEXTS, str(tmp_path))
  assert out.tolist() == expected(TEXTS)
  asked = {text for call in server.calls for text in call['input']}
  assert asked == set(TEXTS) - answered | set(TEXTS[8:12])
  assert set(TEXTS[:8]) <= answered


def test_a_spending_limit_goes_on_with_the_next_run(tmp_path):
  with fake_endpoint.serve(answer_with()) as server:
    config = config_for(server, max_calls=3, concurrency=2)
    with pytest.raises(InputError, match='max_calls: the spending limit of 3'):
      encoding.encode(config, TEXTS, str(tmp_path))
    assert len(server.calls) == 3
    out = encoding.encode(config, TEXTS, str(tmp_path))
    assert len(server.calls) == 5
  assert out.tolist() == expected(TEXTS)


def test_a_server_that_does_not_count_is_counted_at_most(tmp_path):
  """Its answers are good; a limit of tokens still holds."""

  def answer(body, number):
    status, reply = answer_with()(body, number)
    return status, {name: reply[name] for name in reply if name != 'usage'}

  with fake_endpoint.serve(answer) as server:
    config = config_for(server, concurrency=1)
    assert encoding.encode(config, TEXTS).tolist() == expected(TEXTS)
    assert len(server.calls) == 5
    first_call = sum(map(len, TEXTS[:4]))
    config = config_for(server, concurrency=1, max_tokens=first_call)
    with pytest.raises(InputError, match='max_tokens'):
      encoding.encode(config, TEXTS, str(tmp_path))
    assert len(server.calls) == 6


def test_a_model_that_changed_behind_its_name(tmp_path):
  wider = lambda rows: [{**row, 'embedding': [1, 2]} for row in rows]
  with fake_endpoint.serve(answer_with()) as server:
    encoding.encode(config_for(server), TEXTS[:3], str(tmp_path))
  with fake_endpoint.serve(answer_with(wider)) as server:
    with pytest.raises(InputError, match='openai-.*: vectors of 3 and of 2'):
      encoding.encode(config_for(server), TEXTS, str(tmp_path))


def test_a_model_must_be_named():
  with fake_endpoint.serve(None) as server:
    with pytest.raises(InputError, match="encoder.model: '' is not allowed"):
      encoding.encode(config_for(server, model=''), TEXTS)
