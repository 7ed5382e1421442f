"""The writer behind an endpoint: failures, limits, causality."""

import functools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import prompts
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.facets.writers import openai_writer
from dynllm_jax.storage.store import Store
from dynllm_jax.text import endpoint
from dynllm_jax.types import InputError
from tests.testing import facet_answers
from tests.testing import fake_endpoint
from tests.testing import ROOT


@pytest.fixture(name='log')
def fixture_log(make_log):
  return make_log(
    facet_answers.EVENTS, facet_answers.TITLES, brands=facet_answers.BRANDS
  )


@pytest.fixture(autouse=True)
def fixture_quick(monkeypatch):
  """Little patience between two tries, and a key."""
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  init = endpoint.Endpoint.__init__

  def hasty(self, *args):
    init(self, *args)
    self.first_delay = 0.01

  monkeypatch.setattr(endpoint.Endpoint, '__init__', hasty)


def said(text):
  """A chat completion that says `text`."""
  return 200, fake_endpoint.completion(text)


def good(body, number=0):
  return said(facet_answers.good(body['messages'][1]['content']))


def fields(server, **changes):
  return facet_answers.fields(
    name='openai',
    base_url=server.url,
    **{'timeout_s': 5.0, 'num_retries': 3, **changes},
  )


def write(server, log, folder, **changes):
  return writing.write(
    fields(server, **changes).writer,
    log,
    windows.profiles(log, facet_answers.WINDOW),
    str(folder),
    lambda line: None,
  )


def test_what_is_sent_and_what_comes_of_it(log, tmp_path):
  with fake_endpoint.serve(good) as server:
    got = write(server, log, tmp_path, temperature=0.5, seed=3)
    assert len(server.calls) == facet_answers.NUM_PROMPTS
    assert set(server.keys) == {'Bearer secret'}
    write(server, log, tmp_path, temperature=0.5, seed=3)
    assert len(server.calls) == facet_answers.NUM_PROMPTS
  for body in server.calls:
    system, user = body['messages']
    assert system == {'role': 'system', 'content': prompts.SYSTEM}
    assert user['role'] == 'user' and user['content'].startswith('Purchases')
    assert body['model'] == 'm' and body['temperature'] == 0.5
    assert body['max_tokens'] == 256 and 0 <= body['seed'] < 2**31
  assert got.texts[got.index[0, 0]] == 'buys on 2021-01-04'
  assert got.num_failed == 0
  config = fields(server, model='qwen').writer
  for words in (
    'language model qwen',
    'greedy',
    'prompt version',
    'through an endpoint',
  ):
    assert words in writing.describe(config)


@pytest.mark.parametrize(
  'failure',
  [
    ('stall', 2.0),
    ('drop', None),
    (429, {'error': {'message': 'slow'}}),
    (500, {}),
    (503, b'<html>'),
    (200, b'{"choices": [{"mess'),
    (200, {}),
    (200, {'choices': []}),
  ],
  ids=lambda failure: f'{failure[0]} {str(failure[1])[:12]}',
)
def test_passing_failures_leave_no_trace(log, tmp_path, failure):
  def answer(body, number):
    return failure if number in (0, 2) else good(body)

  with fake_endpoint.serve(answer) as server:
    got = write(server, log, tmp_path, timeout_s=0.5)
    assert len(server.calls) == facet_answers.NUM_PROMPTS + 2
    assert got.num_failed == 0
  with fake_endpoint.serve(good) as server:
    assert write(server, log, '').texts == got.texts


def test_broken_json_in_the_answer_is_asked_again(log, tmp_path):
  def answer(body, number):
    return good(body) if body['temperature'] else said('{"crd": "a", ')

  with fake_endpoint.serve(answer) as server:
    got = write(server, log, tmp_path)
    assert len(server.calls) == 2 * facet_answers.NUM_PROMPTS
    assert got.num_failed == 0 and got.index[0].any()


@pytest.mark.parametrize('content', [None, '', ['a']])
def test_an_answer_without_a_text_fails(log, content):
  with fake_endpoint.serve(lambda body, number: said(content)) as server:
    got = write(
      server, log, '', max_attempts=2, max_failure_rate=1.0, num_retries=0
    )
    assert got.num_failed == 5 and not got.index.any()
    assert len(server.calls) == 2 * facet_answers.NUM_PROMPTS


def test_a_refused_prompt_fails_alone_and_says_why(log, tmp_path):
  def answer(body, number):
    if 'shea' in body['messages'][1]['content']:
      return 400, {'error': {'message': 'no lotions'}}
    return good(body)

  with fake_endpoint.serve(answer) as server:
    got = write(server, log, tmp_path, max_failure_rate=0.25)
    assert got.num_failed == 1 and not got.index[4].any()
    with pytest.raises(InputError, match='1 of 4 prompts.*no lotions'):
      write(server, log, tmp_path)


@pytest.mark.parametrize(
  'status, words',
  [
    (401, 'OPENAI_API_KEY: refused'),
    (404, r"facets\.writer\.model: 'm'"),
    (500, r'facets\.writer\.base_url: .* failed 4 times in a row'),
  ],
)
def test_an_endpoint_that_is_no_use_stops_the_run(log, tmp_path, status, words):
  def answer(body, number):
    return good(body) if number < 2 else (status, {})

  with fake_endpoint.serve(answer) as server:
    with pytest.raises(InputError, match=words):
      write(server, log, tmp_path, concurrency=1)
  with fake_endpoint.serve(good) as server:
    write(server, log, tmp_path)
    assert len(server.calls) == facet_answers.NUM_PROMPTS - 2


def test_no_network(log, tmp_path):
  with fake_endpoint.serve(good) as server:
    pass
  with pytest.raises(InputError, match='base_url.* failed 2 times in a row'):
    write(server, log, tmp_path, num_retries=1)


def test_a_spending_limit_keeps_what_is_finished(log, tmp_path):
  with fake_endpoint.serve(good) as server:
    with pytest.raises(InputError, match='max_calls: .* limit of 1 is reached'):
      write(server, log, tmp_path, max_calls=1)
    # A call costs 120 tokens, and could cost its prompt's and 256.
    most = 256 + max(
      prompts.Prompts(
        log,
        windows.profiles(log, facet_answers.WINDOW),
        1024,
        prompts.Counter(
          openai_writer.count_texts,
          functools.partial(openai_writer.count_prompts, fields(server).writer),
        ),
      ).tokens
    )
    with pytest.raises(InputError, match='max_tokens: the spending limit'):
      write(server, log, tmp_path, max_tokens=int(most))
    assert len(server.calls) == 2
    write(server, log, tmp_path, max_calls=2)
    assert len(server.calls) == facet_answers.NUM_PROMPTS


def test_a_limit_counts_over_all_rounds(make_log, tmp_path):
  log = make_log(facet_answers.many(9, 8), facet_answers.TITLES)
  with fake_endpoint.serve(good) as server:
    with pytest.raises(InputError, match='limit of 66 is reached'):
      write(server, log, tmp_path, max_calls=66)
    assert len(server.calls) == 66


def test_tokens_are_estimated_from_bytes(log, tmp_path):
  lines = []
  with fake_endpoint.serve(good) as server:
    writing.plan(
      fields(server).writer,
      log,
      windows.profiles(log, facet_answers.WINDOW),
      str(tmp_path / 'none'),
      lines.append,
    )
    assert not server.calls and not (tmp_path / 'none').exists()
  assert 'input tokens (estimated), at most 1,024 output' in lines[2]
  # Nine bytes, and three of three bytes each.
  assert openai_writer.count_texts(['a' * 9, '购买者', '']) == [3, 3, 0]


def test_bank_names_the_writer_and_its_failures(log, tmp_path):
  def answer(body, number):
    shea = 'shea' in body['messages'][1]['content']
    return said('?') if shea else good(body)

  with fake_endpoint.serve(answer) as server:
    config = fields(server, max_failure_rate=0.25, max_attempts=1)
    got, about = facet_bank.build(config, log, str(tmp_path), lambda line: None)
    assert about['writer'] == writing.describe(config.writer)
    assert about['num_failed'] == 1 and about['failure_rate'] == 1 / 5
    assert not got.index[4].any() and got.index[0].any()
    count = len(server.calls)
    # What changes no text finds the same bank.
    config.writer.concurrency, config.writer.max_calls = 1, 1
    config.writer.price_per_million_input = 5.0
    config.writer.base_url = 'http://127.0.0.1:1/v1'
    _, again = facet_bank.build(config, log, str(tmp_path))
    assert again == about and len(server.calls) == count


def test_causal(make_log, tmp_path):
  """Purchases at and after a close change no facet that serves up to it."""
  close = 2 * facet_answers.WINDOW
  late = [(1, 3, close), (2, 1, close + 5), (3, 1, 3 * facet_answers.WINDOW)]
  early = [event for event in facet_answers.EVENTS if event[2] < close]
  served, asked = [], []
  with fake_endpoint.serve(good) as server:
    for events in (facet_answers.EVENTS, early + late):
      log = make_log(
        events, facet_answers.TITLES, brands=facet_answers.BRANDS, num_users=3
      )
      got, _ = facet_bank.build(
        fields(server), log, str(tmp_path), lambda line: None
      )
      users = np.tile(np.arange(4, dtype=np.int32), 2)
      times = np.repeat(np.array([close // 2, close], np.int32), 4)
      served.append(got.texts[np.asarray(lookup(got, users, times))].tobytes())
      asked.append(len(server.calls))
  assert served[0] == served[1]
  # Only the new windows were asked for; the last is as before, of one item.
  assert asked == [4, 4 + 3]


# -------------------------------------------------- processes of their own

_WRITE = """
import sys
from dynllm_jax.facets import windows, writing
from tests.testing import facet_answers, logs
log = logs.log_of_events(facet_answers.many(6, 10), facet_answers.TITLES)
config = facet_answers.fields(
    name='openai', base_url=sys.argv[1], concurrency=3).writer
writing.write(
    config, log, windows.profiles(log, facet_answers.WINDOW), sys.argv[2])
"""


def start(server, folder):
  """A process that writes about the same log as any other of its kind."""
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      _WRITE,
      server.url,
      str(folder),
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def slow(body, number):
  time.sleep(0.03)
  return good(body)


def content(folder):
  """Everything that a store holds, in any order."""
  (path,) = folder.iterdir()
  store = Store(path, json.loads((path / 'about.json').read_text()))
  assert (store.folder / 'index.bin').stat().st_size == 32 * len(store)
  return {key: store.read(row) for row, key in enumerate(store.keys(0))}


@pytest.mark.slow
def test_two_processes_pay_once(tmp_path):
  with fake_endpoint.serve(slow) as server:
    both = [start(server, tmp_path) for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert len(server.calls) == 60
  assert len(content(tmp_path)) == 60


# --------------------------------------------------------------- the form


def formats(server):
  """The response_format of each call so far; None where it has none."""
  return [body.get('response_format') for body in server.calls]


def only(kind, limited=True):
  """A server that knows one `response_format` alone, and lengths or not."""

  def answer(body, number):
    del number
    asked = body.get('response_format', {'type': 'free'})
    if asked['type'] != kind:
      message = "response_format: 'json_schema' is none of what is allowed"
      return 500, {'error': {'message': message}}
    if 'maxLength' in json.dumps(asked) and not limited:
      return 400, {'error': {'message': 'maxLength is not permitted'}}
    return good(body)

  return answer


def test_an_endpoint_that_keeps_to_a_schema_is_given_one(log, tmp_path):
  with fake_endpoint.serve(good) as server:
    assert write(server, log, tmp_path, form='guided').num_failed == 0
  schemas = [asked['json_schema']['schema'] for asked in formats(server)]
  assert len(schemas) == facet_answers.NUM_PROMPTS
  assert schemas[0]['required'] == ['crd', 'int', 'ctg', 'brd']
  assert set(schemas[0]['properties']) == set(schemas[0]['required'])
  # Of 256 tokens the form `{"crd": "", ...}`, 44 bytes, is given 15.
  lengths = {kind['maxLength'] for kind in schemas[0]['properties'].values()}
  assert lengths == {(256 - 15) // 4 * 3}


@pytest.mark.parametrize(
  'answer, tries, words',
  [
    (only('json_schema', limited=False), 1, 'it takes a JSON schema'),
    (only('json_object'), 2, 'it takes a JSON object with a schema'),
    (only('free'), 3, 'it takes none: answers are free'),
  ],
  ids=['no lengths', 'json_object', 'free'],
)
def test_an_endpoint_is_asked_in_the_way_that_it_takes(
  log, tmp_path, answer, tries, words
):
  """The first call finds it; none after it tries again."""
  lines = []
  with fake_endpoint.serve(answer) as server:
    got = writing.write(
      fields(server, form='guided').writer,
      log,
      windows.profiles(log, facet_answers.WINDOW),
      str(tmp_path),
      lines.append,
    )
  assert got.num_failed == 0
  asked = formats(server)
  assert len(asked) == facet_answers.NUM_PROMPTS + tries
  assert all(one == asked[tries] for one in asked[tries:])
  assert all(one != asked[tries] for one in asked[:tries])
  assert [line.endswith(f'; {words}') for line in lines].count(True) == 1


def test_a_server_that_fails_says_nothing_of_schemas(log, tmp_path):
  def answer(body, number):
    return (500, {'error': {'message': 'oops'}}) if not number else good(body)

  with fake_endpoint.serve(answer) as server:
    assert write(server, log, tmp_path, form='guided').num_failed == 0
  assert len(server.calls) == facet_answers.NUM_PROMPTS + 1
  assert len({json.dumps(asked) for asked in formats(server)}) == 1


def test_a_bad_request_says_nothing_of_schemas(log, tmp_path):
  def picky(body, number):
    if 'cake' in body['messages'][1]['content']:
      return 400, {'error': {'message': 'cake is not served'}}
    return good(body)

  with fake_endpoint.serve(picky) as server:
    got = write(
      server, log, tmp_path, form='guided', max_failure_rate=1.0, max_attempts=1
    )
  assert got.num_failed > 0
  plain = [body for body in server.calls if 'response_format' not in body]
  assert all('cake' in body['messages'][1]['content'] for body in plain)
