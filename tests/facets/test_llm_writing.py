"""What every writer with a language model does, shown with a scripted one."""

import json
import shutil

import pytest

from dynllm_jax.facets import language_model
from dynllm_jax.facets import llm_planning
from dynllm_jax.facets import llm_writing
from dynllm_jax.facets import prompts
from dynllm_jax.facets import windows
from dynllm_jax.types import InputError
from tests.testing import facet_answers

COUNTER = prompts.Counter(
  lambda texts: [len(text.split()) for text in texts],
  lambda messages: [100 + len(message.split()) for message in messages],
)


class Scripted:
  """A model that answers `reply(request)`, a few at a time."""

  def __init__(self, reply=lambda request: facet_answers.good(request.message)):
    self.reply, self.requests = reply, []

  def __call__(self, config):
    return language_model.Model(
      language_model.about(config), COUNTER, self.answer
    )

  def answer(self, requests):
    for first in range(0, len(requests), 2):
      group = requests[first : first + 2]
      self.requests += group
      yield [
        (r, language_model.Reply(self.reply(r), r.tokens, 7)) for r in group
      ]

  @property
  def messages(self):
    return [request.message for request in self.requests]


def write(script, log, folder, report=lambda line: None, **changes):
  """What a scripted model writes about a log; `changes` are of the writer."""
  config = facet_answers.fields(name='flax', **changes).writer
  return llm_writing.write(
    config,
    (script or Scripted())(config),
    log,
    windows.profiles(log, facet_answers.WINDOW),
    str(folder),
    report,
  )


@pytest.fixture(name='log')
def fixture_log(make_log):
  return make_log(
    facet_answers.EVENTS, facet_answers.TITLES, brands=facet_answers.BRANDS
  )


def test_every_prompt_is_asked_once(log, tmp_path):
  script, lines = Scripted(), []
  got = write(script, log, tmp_path, lines.append)
  assert lines == ['facets: 5 profiles, 4 distinct prompts, 0 of them finished']
  assert len(script.requests) == len(set(script.messages)) == 4
  assert {(r.temperature, r.tokens) for r in script.requests} == {
    (0.0, size) for size in COUNTER.prompts(script.messages)
  }
  assert len({r.seed for r in script.requests}) == 4
  assert [[got.texts[k] for k in row] for row in got.index] == [
    ['buys on 2021-01-04', 'rose mascara', 'unknown', 'Acme'],
    ['buys on 2021-01-14', 'cake tins', 'unknown', 'unknown'],
    ['buys on 2021-01-04', 'rose mascara', 'unknown', 'Acme'],
    ['buys on 2021-02-13', 'cake tins', 'unknown', 'unknown'],
    [
      'buys on 2021-02-03 2021-02-03',
      'rose mascara, shea lotion',
      'unknown',
      'Acme',
    ],
  ]
  assert got.num_read.tolist() == [1, 1, 1, 1, 2] and got.num_failed == 0
  again = Scripted()
  assert write(again, log, tmp_path).texts == got.texts
  assert not again.requests
  # And nothing is kept where nothing may be.
  assert write(again, log, '').texts == got.texts
  assert len(again.requests) == 4


def test_malformed_answers_are_asked_again(log, tmp_path):
  """Not greedily, and as often as allowed; then the profile is unknown."""

  def reply(request):
    if 'rose' not in request.message:
      return facet_answers.good(request.message)
    if 'shea' in request.message and request.temperature:
      return facet_answers.good(request.message)
    return 'I think'

  script = Scripted(reply)
  got = write(script, log, tmp_path, max_attempts=3, max_failure_rate=0.25)
  rose = [
    r
    for r in script.requests
    if 'rose' in r.message and 'shea' not in r.message
  ]
  assert [r.temperature for r in rose] == [0.0, 0.7, 0.7]
  assert len({r.seed for r in rose}) == 3
  assert len(script.requests) == 4 + 2 + 1
  assert got.num_failed == 2  # profiles of one prompt
  assert not got.index[0].any() and not got.index[2].any()
  assert got.index[4].any()
  again = Scripted()
  kept = write(again, log, tmp_path, max_attempts=3, max_failure_rate=0.25)
  assert kept.texts == got.texts and not again.requests
  # One more attempt is one more call.
  write(again, log, tmp_path, max_attempts=4)
  assert len(again.requests) == 1
  assert again.requests[0].seed not in {r.seed for r in rose}


def test_too_many_failures_stop_the_run(log, tmp_path):
  def reply(request):
    return (
      '{' if 'rose' in request.message else facet_answers.good(request.message)
    )

  with pytest.raises(InputError) as caught:
    write(Scripted(reply), log, tmp_path, max_failure_rate=0.49)
  for words in (
    'facets.writer.max_failure_rate',
    '2 of 4 prompts (50.0%)',
    'in 3 attempts',
    '49.0%',
    'not JSON',
    str(tmp_path),
  ):
    assert words in str(caught.value)
  script = Scripted()
  assert write(script, log, tmp_path, max_failure_rate=0.5).num_failed == 3
  assert not script.requests


def test_a_model_that_cannot_do_it_is_found_out_early(make_log, tmp_path):
  log = make_log(facet_answers.many(9, 60), facet_answers.TITLES)
  script = Scripted(lambda request: 'no')
  with pytest.raises(InputError, match='64 of 64 prompts'):
    write(script, log, tmp_path, max_attempts=2)
  assert len(script.requests) == 2 * 64
  # Rounds double as long as it can: 540 are asked in four.
  script = Scripted()
  sizes, answer = [], script.answer
  script.answer = lambda requests: (
    sizes.append(len(requests)) or answer(requests)
  )
  write(script, log, '')
  assert sizes == [64, 128, 256, 540 - 448]


def test_a_stopped_run_goes_on(log, tmp_path):
  class Stopped(Scripted):
    def answer(self, requests):
      yield from list(super().answer(requests[:2]))
      raise InputError('the line is dead')

  with pytest.raises(InputError, match='the line is dead'):
    write(Stopped(), log, tmp_path)
  script = Scripted()
  lines = []
  got = write(script, log, tmp_path, lines.append)
  assert '2 of them finished' in lines[0]
  assert len(script.requests) == 2
  assert got.texts == write(Scripted(), log, '').texts


def test_an_answer_is_kept_before_the_next_is_asked(log, tmp_path):
  class Killed(Scripted):
    def answer(self, requests):
      for group in super().answer(requests):
        yield group
        (store,) = tmp_path.iterdir()
        assert (store / 'index.bin').stat().st_size == 32 * len(self.requests)

  script = Killed()
  write(script, log, tmp_path)
  assert len(script.requests) == 4


def test_what_else_is_asked_is_kept_elsewhere(log, tmp_path, monkeypatch):
  for changes in (
    {},
    {'temperature': 0.5},
    {'seed': 1},
    {'model': 'a/b'},
    {'max_output_tokens': 9},
  ):
    script = Scripted()
    write(script, log, tmp_path, **changes)
    assert len(script.requests) == 4, changes
  monkeypatch.setattr(prompts, 'VERSION', 99)
  script = Scripted()
  write(script, log, tmp_path)
  assert len(script.requests) == 4
  assert len(list(tmp_path.iterdir())) == 6
  # None of these changes an answer.
  script = Scripted()
  write(
    script,
    log,
    tmp_path,
    concurrency=99,
    max_calls=7,
    tokens_per_s=1.0,
    price_per_million_input=3.0,
    batch_size=2,
    max_attempts=1,
    max_failure_rate=1.0,
    base_url='http://x',
    max_input_tokens=999,
  )
  assert not script.requests


def test_a_store_of_another_prompt_version_is_refused(
  log, tmp_path, monkeypatch
):
  """Should its folder be given the name of this one's."""
  write(Scripted(), log, tmp_path)
  (old,) = tmp_path.iterdir()
  config = facet_answers.fields(name='flax').writer
  monkeypatch.setattr(prompts, 'VERSION', 99)
  shutil.copytree(
    old, llm_writing.store_folder(Scripted()(config), str(tmp_path))
  )
  script = Scripted()
  with pytest.raises(InputError, match='prompt_version is 1, not 99'):
    write(script, log, tmp_path)
  assert not script.requests and (old / 'index.bin').stat().st_size == 4 * 32


def test_a_damaged_store_is_named(log, tmp_path):
  write(Scripted(), log, tmp_path)
  (store,) = tmp_path.iterdir()
  path = store / 'payload.bin'
  data = bytearray(path.read_bytes())
  data[10] ^= 1
  path.write_bytes(data)
  with pytest.raises(InputError, match=r'payload\.bin: row 0 .* not as it was'):
    write(Scripted(), log, tmp_path)


@pytest.mark.parametrize(
  'field, value',
  [
    ('model', ''),
    ('max_input_tokens', 0),
    ('max_output_tokens', 0),
    ('temperature', -1.0),
    ('temperature', float('nan')),
    ('seed', -1),
    ('max_attempts', 0),
    ('max_failure_rate', 1.5),
  ],
)
def test_fields_out_of_range(field, value):
  config = facet_answers.fields(name='openai', **{field: value}).writer
  with pytest.raises(
    InputError, match=rf'config\.facets\.writer\.{field}: .*; allowed'
  ):
    language_model.check(config)


def plan(log, folder, script=None, **changes):
  """The lines of a plan; the arguments are those of `write`."""
  config, lines = facet_answers.fields(name='flax', **changes).writer, []
  llm_planning.plan(
    config,
    (script or Scripted())(config),
    log,
    windows.profiles(log, facet_answers.WINDOW),
    str(folder),
    lines.append,
  )
  return lines


def test_a_plan_counts_and_spends_nothing(log, tmp_path):
  script = Scripted()
  lines = plan(
    log,
    tmp_path / 'none',
    script,
    max_output_tokens=50,
    price_per_million_input=2000.0,
    price_per_million_output=1e4,
  )
  config = facet_answers.fields(name='flax').writer
  work = llm_writing.survey(
    config,
    (script or Scripted())(config),
    log,
    windows.profiles(log, facet_answers.WINDOW),
    llm_writing.open_store(script(config), str(tmp_path / 'other')),
  )
  tokens = sum(
    COUNTER.prompts([work.prompts.message(row) for row in work.rows])
  )
  assert lines == [
    'facets: 4 windows',
    'facets: 5 profiles, 4 distinct prompts, 0 of them finished',
    f'facets: 4 calls to come, retries aside: {tokens} input tokens, at most '
    f'{4 * 50} output tokens',
    'facets: no estimate of the time: config.facets.writer.tokens_per_s '
    'states no rate, and no run has measured it yet',
    f'facets: at most {(tokens * 2000 + 200 * 1e4) / 1e6:.2f} at 2000 a '
    'million input and 10000 a million output tokens',
  ]
  assert not script.requests and not (tmp_path / 'none').exists()
  assert plan(log, '', max_output_tokens=50, tokens_per_s=100.0)[3] == (
    f'facets: at most {(tokens + 200) / 100:.0f} s at 100 tokens/s, as stated'
  )


def test_a_plan_counts_what_is_left_at_the_rate_of_before(log, tmp_path):
  class Half(Scripted):
    def answer(self, requests):
      yield from list(super().answer(requests[:2]))
      raise InputError('stopped')

  with pytest.raises(InputError, match='stopped'):
    write(Half(), log, tmp_path)
  (store,) = tmp_path.iterdir()
  assert json.loads((store / 'rate.json').read_text())['tokens_per_s'] > 0
  (store / 'rate.json').write_text('{"tokens_per_s": 10}')
  lines = plan(log, tmp_path)
  assert '2 of them finished' in lines[1] and '2 calls to come' in lines[2]
  assert 'at 10 tokens/s, as last measured' in lines[3]
  (store / 'rate.json').write_text('{"tokens_per_s"')  # as after a bad disk
  assert 'as last measured' not in ' '.join(plan(log, tmp_path))
