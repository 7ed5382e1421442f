"""Calls to an endpoint that fails in every way an endpoint can."""

import sys
import threading
import time

import pytest

from dynllm_jax.text import endpoint as endpoint_lib
from dynllm_jax.types import InputError
from tests.testing import fake_endpoint

FIELD = 'config.facets.encoder'


def make_endpoint(server, **fields):
  made = endpoint_lib.Endpoint(FIELD, fake_endpoint.settings(server, **fields))
  made.first_delay = 0.01
  return made


def ask(client, request):
  """Asks for the embedding of a text; costs what the answer says."""
  answer = client.embeddings.create(
    model='m', input=[request], encoding_format='float'
  )
  if not answer.data or len(answer.data[0].embedding) != 1:
    raise endpoint_lib.BadAnswerError('no vector of one')
  return answer.data[0].embedding[0], answer.usage.total_tokens


def good(body):
  """The length of the text as its vector, at seven tokens a call."""
  vector = [len(body['input'][0])]
  return 200, fake_endpoint.embeddings([vector], tokens=7)


def texts(count):
  return ['x' * n for n in range(1, count + 1)]


def test_every_request_is_answered_once(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')

  def answer(body, number):
    time.sleep(0.05)
    return good(body)

  with fake_endpoint.serve(answer) as server:
    made = make_endpoint(server, concurrency=3)
    taken = []
    requests = (taken.append(text) or text for text in texts(10))
    answers = made.run(requests, ask)
    first = next(answers)
    assert len(taken) <= 4  # no faster than calls become free
    found = dict([first, *answers])
  assert found == {text: len(text) for text in texts(10)}
  assert server.most == 3
  assert set(server.keys) == {'Bearer secret'}
  assert made.usage == endpoint_lib.Usage(calls=10, retries=0, tokens=70)


@pytest.mark.parametrize(
  'failure',
  [
    ('stall', 3.0),
    ('drop', None),
    (429, {'error': {'message': 'slow down'}}),
    (500, {'error': {'message': 'oops'}}),
    (503, b'<html>busy</html>'),
    (408, {}),
    (409, {}),
    (200, b'{"object": "list", "da'),
    (200, {'object': 'list', 'data': []}),
    (200, [1, 2]),
    (200, b''),
  ],
  ids=lambda failure: f'{failure[0]} {str(failure[1])[:12]}',
)
def test_a_passing_failure_is_tried_again(failure):
  def answer(body, number):
    return failure if number in (1, 2) else good(body)

  with fake_endpoint.serve(answer) as server:
    made = make_endpoint(server, concurrency=1, timeout_s=0.5)
    found = dict(made.run(texts(4), ask))
  assert found == {text: len(text) for text in texts(4)}
  assert made.usage == endpoint_lib.Usage(calls=6, retries=2, tokens=28)


def test_a_server_that_says_when_is_heeded():
  times = []

  def answer(body, number):
    times.append(time.monotonic())
    return (429, {}, {'Retry-After': '0.5'}) if not number else good(body)

  with fake_endpoint.serve(answer) as server:
    assert len(list(make_endpoint(server).run(texts(1), ask))) == 1
  assert times[1] - times[0] >= 0.5


def test_a_failure_that_stays_ends_the_run_and_loses_nothing():
  late = threading.Event()

  def answer(body, number):
    if len(body['input'][0]) == 3:
      return 500, {}
    if len(body['input'][0]) == 4:
      late.wait(5)  # in flight while the third gives up
    return good(body)

  found = {}
  with fake_endpoint.serve(answer) as server:
    made = make_endpoint(server, concurrency=2)
    threading.Timer(1, late.set).start()
    with pytest.raises(InputError, match='base_url: .* failed 4 times in a'):
      for text, value in made.run(texts(100), ask):
        found[text] = value
  assert found == {'x': 1, 'xx': 2, 'xxxx': 4}
  assert [len(call['input'][0]) for call in server.calls].count(3) == 4


def test_no_server():
  with fake_endpoint.serve(None) as server:
    pass
  with pytest.raises(InputError, match='APIConnectionError'):
    list(make_endpoint(server).run(texts(1), ask))


@pytest.mark.parametrize(
  'status, match',
  [
    (401, 'OPENAI_API_KEY: refused'),
    (403, 'OPENAI_API_KEY: refused'),
    (404, "facets.encoder.model: 'm' is not served"),
  ],
)
def test_what_no_retry_mends_ends_the_run(status, match):
  with fake_endpoint.serve(lambda body, number: (status, {})) as server:
    with pytest.raises(InputError, match=match):
      list(make_endpoint(server, concurrency=1).run(texts(9), ask))
  assert len(server.calls) == 1


@pytest.mark.parametrize(
  'bad, calls',
  [
    ((400, {'error': {'message': 'too long'}}), 1),
    ((413, {}), 1),
    ((422, {}), 1),
    ((200, b'{'), 4),
    ((200, {'data': []}), 4),
  ],
)
def test_a_request_that_is_refused_does_not_stop_the_others(bad, calls):
  def answer(body, number):
    return bad if body['input'] == ['xx'] else good(body)

  with fake_endpoint.serve(answer) as server:
    found = dict(make_endpoint(server).run(texts(3), ask))
  assert isinstance(found.pop('xx'), endpoint_lib.Refused)
  assert found == {'x': 1, 'xxx': 3}
  assert [call['input'] for call in server.calls].count(['xx']) == calls


def test_the_limit_on_calls_counts_retries():
  def answer(body, number):
    return (500, {}) if number == 0 else good(body)

  found = {}
  with fake_endpoint.serve(answer) as server:
    made = make_endpoint(server, max_calls=3, concurrency=1)
    with pytest.raises(
      InputError, match='max_calls: the spending limit of 3 .* 14 tokens'
    ):
      for text, value in made.run(texts(5), ask):
        found[text] = value
  assert found == {'x': 1, 'xx': 2}
  assert len(server.calls) == 3


@pytest.mark.parametrize('concurrency', [1, 4])
def test_the_limit_on_tokens_is_never_exceeded(concurrency):
  """A call holds 10 tokens back and costs 7: of 30, 24 = 10 + 2 * 7 allow a
  third call, and 9 = 30 - 3 * 7 no fourth."""
  found = []
  with fake_endpoint.serve(lambda body, number: good(body)) as server:
    made = make_endpoint(server, max_tokens=30, concurrency=concurrency)
    with pytest.raises(InputError, match='max_tokens: the spending limit of'):
      for pair in made.run(texts(9), ask, tokens=lambda text: 10):
        found.append(pair)
  assert len(found) == len(server.calls) == 3
  assert made.usage.tokens == 21


@pytest.mark.parametrize(
  'name, value',
  [
    ('concurrency', 0),
    ('timeout_s', 0),
    ('num_retries', -1),
    ('max_calls', -1),
    ('max_tokens', -1),
  ],
)
def test_fields_are_checked(name, value):
  with fake_endpoint.serve(None) as server:
    with pytest.raises(InputError, match=f'{FIELD}.{name}: {value}'):
      make_endpoint(server, **{name: value})


def test_an_address_that_is_none():
  with fake_endpoint.serve(None) as server:
    with pytest.raises(
      InputError, match="base_url: 'localhost:1/v1' .* as http://host"
    ):
      make_endpoint(server, base_url='localhost:1/v1')


def test_a_missing_key_or_package(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  with fake_endpoint.serve(None) as server:
    make_endpoint(server)  # a server without keys
    server.url = ''
    with pytest.raises(InputError, match='variable OPENAI_API_KEY, or'):
      make_endpoint(server)
    monkeypatch.setenv('OPENAI_API_KEY', 'ключ')
    with pytest.raises(InputError, match='OPENAI_API_KEY has other'):
      make_endpoint(server)
    server.url = 'http://[::1'
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with pytest.raises(InputError, match=r'base_url: .http://\[::1'):
      make_endpoint(server)
    monkeypatch.setitem(sys.modules, 'openai', None)
    with pytest.raises(InputError, match=r'dynllm_jax\[llm\]'):
      make_endpoint(server)
