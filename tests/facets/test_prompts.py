"""Prompts: what they list, what fits, what they may not see; and answers."""

import hashlib
import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import prompts
from dynllm_jax.facets import windows
from dynllm_jax.types import InputError

DAY = 24 * 3600
WINDOW = 10 * DAY
TITLES = ['Rose &amp; mascara\n black', 'cake | tins', '', 'long ' * 100]
CATEGORIES = ['Beauty', '', '', 'x']
BRANDS = ['Acme', 'Bolt', '', '']
EVENTS = st.lists(
  st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(0, 4 * WINDOW - 1)
  ),
  max_size=20,
)


def words(texts):
  return [len(text.split()) for text in texts]


def whole(messages):
  """As if the system message were ten words, and each prompt two longer."""
  return [len(message.split()) + 12 for message in messages]


WORDS = prompts.Counter(words, whole)


WORDINGS = pytest.mark.parametrize('wording', [prompts, compressed_prompts])


def make(log, budget=1000, counter=WORDS, wording=prompts):
  return wording.Prompts(log, windows.profiles(log, WINDOW), budget, counter)


def lines(made, row):
  return made.message(row).splitlines()[1:]


@pytest.fixture(name='shop', scope='session')
def fixture_shop(make_log):
  def shop(events, **kwargs):
    return make_log(events, TITLES, CATEGORIES, BRANDS, **kwargs)

  return shop


def test_a_message_lists_the_window_newest_first(shop):
  log = shop([(1, 1, 5), (1, 2, DAY), (1, 3, WINDOW - 1), (1, 1, WINDOW)])
  made = make(log)
  # Day 0 of this log is Monday, 4 January 2021.
  assert made.message(0) == (
    'Purchases, newest first (date | title | category | brand):\n'
    '2021-01-13 | - | - | -\n'
    '2021-01-05 | cake / tins | - | Bolt\n'
    '2021-01-04 | Rose & mascara black | Beauty | Acme'
  )
  assert lines(made, 1) == ['2021-01-14 | Rose & mascara black | Beauty | Acme']
  assert made.num_read.tolist() == [3, 1]
  assert made.tokens.tolist() == whole([made.message(0), made.message(1)])


@pytest.mark.parametrize(
  'wording, version, digest',
  [(prompts, 1, 'b621333c2ab4'), (compressed_prompts, 2, '32793a67e47c')],
)
def test_the_prompt_is_the_one_that_its_version_names(wording, version, digest):
  """If this fails on purpose, raise the VERSION: stores depend on it."""
  text = wording.SYSTEM + ''.join(map(''.join, wording.EXAMPLES))
  found = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert (wording.VERSION, found) == (version, digest)


def test_the_second_wording_counts_and_names_the_newest(make_log):
  events = [(1, item, k) for k, item in enumerate([1, 2, 2, 3, 1])]
  log = make_log(
    [*events, (2, 3, 9)],
    ['Rose &amp;\n tea', 'cake tins', ''],
    ['Home > Food > Tea', 'Home > Baking', ''],
    ['Acme', '', ''],
  )
  made = make(log, wording=compressed_prompts)
  assert made.message(0) == (
    'Purchases: 5\n'
    'Categories: Food 2, Tea 2, Baking 2\n'
    'Brands: Acme 2\n'
    'Newest: Rose & tea; -; cake tins; cake tins; Rose & tea'
  )
  assert made.message(1) == (
    'Purchases: 1\nCategories: unknown\nBrands: unknown\nNewest: -'
  )
  assert made.num_read.tolist() == [5, 1]

  # What does not fit is the oldest titles; all purchases are counted still.
  short = make(log, int(made.tokens[0]) - 1, wording=compressed_prompts)
  assert short.message(0).endswith('-; cake tins; cake tins')
  assert short.message(0).startswith('Purchases: 5\n')
  with pytest.raises(InputError, match="few for one purchase, 'Newest: Rose"):
    make(log, 20, wording=compressed_prompts)


@pytest.mark.parametrize('wording', [compressed_prompts])
def test_the_examples_are_answers_that_can_be_read(wording):
  for message, answer in wording.EXAMPLES:
    assert message.startswith(wording.HEADER)
    texts = wording.parse(answer)
    assert all(texts[:3])
    assert bool(texts[3]) == ('Brands: unknown' not in message)


def test_what_a_small_model_says_twice_counts_once():
  said = ['fond of Action, action. , War, ACTION', ' ', 'None', 'Unknown, x']
  answer = json.dumps(dict(zip(compressed_prompts.NAMES, said)))
  assert compressed_prompts.parse(answer) == (
    'fond of Action, action, War',
    '',
    '',
    '',
  )


def test_equal_purchases_are_one_prompt(shop):
  log = shop([(1, 1, 5), (2, 1, 6), (3, 2, 7)])
  keys = make(log).keys
  assert keys[0] == keys[1] != keys[2]


def test_long_texts_are_cut(shop):
  (line,) = lines(make(shop([(1, 4, 0)])), 0)
  assert line == f'2021-01-04 | {("long " * 100)[:200]} | x | -'


@given(EVENTS, st.integers(40, 110))
@settings(max_examples=40, deadline=None)
def test_the_newest_that_fit(shop, events, budget):
  log = shop(events, num_users=3)
  rows = windows.profiles(log, WINDOW)
  fits = lambda count, row: (
    whole(
      [
        '\n'.join(
          [
            'Purchases, newest first (date | title | category | brand):',
            *lines(full, row)[:count],
          ]
        )
      ]
    )[0]
    <= budget
  )
  full = make(log, 10**6)
  if not all(fits(1, row) for row in range(len(rows))):
    with pytest.raises(InputError, match='max_input_tokens.*allowed: '):
      make(log, budget)
    return
  made = make(log, budget)
  for row in range(len(rows)):
    count = int(made.num_read[row])
    total = len(lines(full, row))
    assert lines(made, row) == lines(full, row)[:count]
    assert fits(count, row) and (count == total or not fits(count + 1, row))


def test_a_prompt_that_is_longer_than_its_parts_still_fits(shop):
  """Tokens of the whole count, whatever the parts were thought to have."""
  log = shop([(1, 2, k) for k in range(20)])
  counter = prompts.Counter(lambda texts: [1] * len(texts), whole)
  made = make(log, 60, counter)
  assert made.tokens[0] <= 60 < whole([made.message(0)])[0] + 8
  assert 1 < made.num_read[0] < 20


def test_the_least_budget_is_named(shop):
  log = shop([(1, 4, 0)])
  least = make(log).tokens[0]
  make(log, least)
  with pytest.raises(
    InputError, match=rf'max_input_tokens: {least - 1} .* allowed: {least} '
  ):
    make(log, least - 1)


@WORDINGS
@given(late=EVENTS, k=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_causal(shop, wording, late, k):
  """Purchases at and after a close change no prompt of a window before it."""
  close = k * WINDOW
  early = [
    (1, 1, 5),
    (3, 2, 9),
    (1, 3, WINDOW - 1),
    (1, 2, WINDOW),
    (3, 3, 2 * WINDOW),
  ]
  early = [event for event in early if event[2] < close]
  asked = []
  for events in (early, early + [e for e in late if e[2] >= close]):
    log = shop(events, num_users=3)
    made, rows = make(log, wording=wording), windows.profiles(log, WINDOW)
    asked.append(
      {
        (rows.users[r], rows.closes[r]): made.message(r)
        for r in range(len(rows))
        if rows.closes[r] <= close
      }
    )
  assert asked[0] == asked[1]


def test_log_without_events(make_log):
  made = make(make_log([], TITLES, num_users=2))
  assert len(made) == 0 and made.keys == []


GOOD = {'crd': 'a  \n b', 'int': '', 'ctg': 'Unknown.', 'brd': 'é "q"'}
READ = ('a b', '', '', 'é "q"')


@pytest.mark.parametrize(
  'answer',
  [
    json.dumps(GOOD),
    f'\n {json.dumps(GOOD, indent=2)} \n',
    f'```json\n{json.dumps(GOOD)}\n```',
    f' ```json {json.dumps(GOOD)}``` ',
    json.dumps(dict(reversed(GOOD.items())), ensure_ascii=False),
    json.dumps(GOOD).replace(r'\n', '\n'),  # a line ends within a string
  ],
)
def test_good_answers(answer):
  assert prompts.parse(answer) == READ


@pytest.mark.parametrize(
  'answer, why',
  [
    ('', 'not JSON'),
    ('null', 'not a JSON object'),
    ('["crd", "int", "ctg", "brd"]', 'not a JSON object'),
    (
      '[["crd", "a"], ["int", "b"], ["ctg", "c"], ["brd", "d"]]',
      'not a JSON object',
    ),
    ('{}', 'its keys'),
    (json.dumps({**GOOD, 'x': ''}), 'its keys'),
    (json.dumps({k: GOOD[k] for k in ('crd', 'int', 'ctg')}), 'its keys'),
    (json.dumps(GOOD)[:-1] + ', "crd": "b"}', 'its keys'),
    (json.dumps({**GOOD, 'brd': ['a']}), "'brd' is not a string"),
    (json.dumps({**GOOD, 'brd': {}}), "'brd' is not a string"),
    (json.dumps({**GOOD, 'int': None}), "'int' is not a string"),
    (json.dumps({**GOOD, 'int': 1}), "'int' is not a string"),
    (json.dumps({**GOOD, 'int': '\ud800'}), 'not Unicode'),
    ('Here it is: ' + json.dumps(GOOD), 'not JSON'),
    (json.dumps(GOOD) + ' I hope this helps.', 'not JSON'),
    (json.dumps(GOOD) * 2, 'not JSON'),
    (f'```\n{json.dumps(GOOD)}\n```', 'not JSON'),
    (f'```json\n{json.dumps(GOOD)}\n``` and ```json\n{{}}\n```', 'not JSON'),
    ("{'crd': 'a', 'int': 'b', 'ctg': 'c', 'brd': 'd'}", 'not JSON'),
    (json.dumps(GOOD)[:-3], 'not JSON'),
    ('[' * 100_000, 'not JSON'),
  ],
)
def test_malformed_answers(answer, why):
  with pytest.raises(prompts.MalformedError, match=why):
    prompts.parse(answer)
