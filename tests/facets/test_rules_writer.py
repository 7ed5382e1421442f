"""The rule writer: what it says, and that it reads nothing else."""

import dataclasses
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_collections
import numpy as np
import pytest

from dynllm_jax.facets import item_keywords
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.facets.writers import rules_writer
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError

CONFIG = ml_collections.ConfigDict({'name': 'rules'})
DAY = 24 * 3600
WINDOW = 10 * DAY

TITLES = [
  'Rose Mascara Black, 8 Ounce',
  'SET OF 3 CAKE TINS PANTRY DESIGN',
  'Acme Christmas Mascara',
  'Shea Lotion for Women',
  '',
]
CATEGORIES = [
  "'Beauty', 'Makeup', 'Eyes', 'Mascara'",
  '',
  "'Beauty', 'Makeup', 'Eyes', 'Mascara'",
  "'Beauty', \"Skin's Care\", 'Lotions, Creams'",
  '',
]
BRANDS = ['Rouge &amp; Co', '', 'Acme', 'Acme', '']
EVENTS = st.lists(
  st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(0, 4 * WINDOW - 1)
  ),
  max_size=20,
)


def texts(log, window=WINDOW):
  """{(user, close): the four texts}."""
  rows = windows.profiles(log, window)
  written = writing.write(CONFIG, log, rows)
  assert written.index.dtype == np.int32
  assert written.texts[0] == 'unknown'
  assert len(set(written.texts)) == len(written.texts)
  assert all(written.texts)
  return {
    (int(rows.users[r]), int(rows.closes[r])): tuple(
      written.texts[k] for k in written.index[r]
    )
    for r in range(len(rows))
  }


def only(log):
  (four,) = texts(log).values()
  return dict(zip(FACETS, four))


def item_of(title, category='', brand='', others=()):
  blank = [''] * len(others)
  return item_keywords.describe_items(
    np.array(['', title, *others]),
    np.array(['', category, *blank]),
    np.array(['', brand, *blank]),
  )[1]


def test_one_purchase(make_log):
  """If this fails on purpose, raise rules.VERSION: caches depend on it."""
  four = only(
    make_log([(1, 1, 5 * DAY + 9 * 3600)], TITLES, CATEGORIES, BRANDS)
  )
  assert four == {
    'crd': 'occasional buyer, one purchase, in January, weekend mornings',
    'int': 'interested in rose, black, mascara; lately rose mascara',
    'ctg': 'buys Mascara (Makeup, Eyes); mainly Makeup',
    'brd': 'favors Rouge & Co for Mascara',
  }
  assert rules_writer.VERSION == 1


def test_several_purchases(make_log):
  """As above: these texts are part of the version."""
  events = [(1, 1 + k % 4, k * DAY + 20 * 3600) for k in range(8)]
  four = only(make_log(events, TITLES, CATEGORIES, BRANDS))
  assert four == {
    'crd': 'regular buyer, several purchases on many days, in January, '
    'all-week evenings, a narrow range, often the same again, loyal to one '
    'brand',
    'int': 'interested in mascara, shea, lotion, women, christmas, cake, tins, '
    'pantry; lately shea lotion, christmas mascara',
    'ctg': "buys Mascara (Makeup, Eyes), Lotions, Creams (Skin's Care), tins "
    "pantry; mainly Makeup, Skin's Care",
    'brd': 'favors Acme for Lotions, Creams, Rouge & Co for Mascara',
  }


def test_nothing_to_say_is_unknown(make_log):
  four = only(make_log([(1, 5, 0)], TITLES, CATEGORIES, BRANDS))
  assert [four[name] for name in FACETS[1:]] == ['unknown'] * 3


def test_log_without_categories_names_product_types(make_log):
  four = only(make_log([(1, 2, 0)], [*TITLES, 'PINK TINS', 'tins']))
  assert four['ctg'] == 'buys cake tins; mainly tins'
  assert four['brd'] == 'unknown'


def test_capped_to_the_newest_fifty(make_log):
  old = [(1, 3, k) for k in range(5)]
  new = [(1, 1, 100 + k) for k in range(50)]
  assert texts(make_log(old + new, TITLES, CATEGORIES, BRANDS)) == texts(
    make_log(new, TITLES, CATEGORIES, BRANDS)
  )


def test_new_purchases_weigh_more(make_log):
  four = only(make_log([(1, 1, 0), (1, 4, 1)], TITLES, CATEGORIES, BRANDS))
  assert four['ctg'].startswith('buys Lotions, Creams')
  assert four['brd'].startswith('favors Acme for Lotions, Creams, Rouge & Co')
  four = only(make_log([(1, 4, 0), (1, 1, 1)], TITLES, CATEGORIES, BRANDS))
  assert four['ctg'].startswith('buys Mascara')


@given(EVENTS, EVENTS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_causal(make_log, events, others, k):
  """Whatever happens at or after a close, profiles up to it stay."""
  close = k * WINDOW
  early = [event for event in events if event[2] < close]
  late = [event for event in others if event[2] >= close]
  columns = (TITLES, CATEGORIES, BRANDS, 3)
  full = texts(make_log(events, *columns))
  changed = texts(make_log(early + late, *columns))
  kept = {key: four for key, four in full.items() if key[1] <= close}
  assert kept == {key: four for key, four in changed.items() if key[1] <= close}
  assert kept == texts(make_log(early, *columns))


@given(EVENTS)
@settings(max_examples=30, deadline=None)
def test_other_users_do_not_matter(make_log, events):
  columns = (TITLES, CATEGORIES, BRANDS, 3)
  every = texts(make_log(events, *columns))
  alone = texts(make_log([e for e in events if e[0] == 2], *columns))
  assert alone == {key: t for key, t in every.items() if key[0] == 2}


def test_one_window_reads_no_other(make_log):
  columns = (TITLES, CATEGORIES, BRANDS)
  both = texts(make_log([(1, 1, 3), (1, 4, WINDOW)], *columns))
  second = texts(make_log([(1, 4, WINDOW)], *columns))
  assert both[1, 2 * WINDOW] == second[1, 2 * WINDOW]


def test_rhythm_comes_from_the_calendar(make_log):
  log = make_log([(1, 1, 23 * 3600)], TITLES)
  assert 'in January, weekday nights' in only(log)['crd']
  midnight = make_log([(1, 1, DAY - 60), (1, 1, DAY + 60)], TITLES)
  assert 'weekday nights' in only(midnight)['crd']
  mixed = make_log([(1, 1, 9 * 3600), (1, 1, 20 * 3600)], TITLES)
  assert 'weekday shopping at all hours' in only(mixed)['crd']
  later = dataclasses.replace(log, start_time=log.start_time + 180 * DAY)
  assert 'in July' in only(later)['crd']
  dates = make_log([(1, 1, 0), (1, 1, DAY)], TITLES)
  assert 'weekday shopping, often the same again' in only(dates)['crd']


@pytest.mark.parametrize(
  'title, product',
  [
    ('SET OF 3 CAKE TINS PANTRY DESIGN', 'cake tins'),
    ('Aveeno Daily Lotion, 8 Ounce', 'daily lotion'),
    ('BLUE GLASS GEMS IN BAG', 'glass gems'),
    ('SET/20 RED PAPER NAPKINS', 'paper napkins'),
    ('Hair Dryer - 1875 W', 'hair dryer'),
    ('WOODEN HEART PINK LARGE', 'wooden heart'),
    ('夏季新款女装连衣裙', '装连衣裙'),
    ('12 345', ''),
    ('', ''),
  ],
)
def test_product_types(title, product):
  others = [
    'tins',
    'pink tins',
    'red lotion',
    'gems',
    'heart',
    'napkins',
    'dryer',
  ]
  assert item_of(title, '', 'Aveeno', others).product == product


@pytest.mark.parametrize(
  'category, path',
  [
    ("'A', \"B's\", 'C, D'", "C, D (A, B's)"),
    ('A > B > C', 'C (A, B)'),
    ('A|B', 'B (A)'),
    ('A &amp; B', 'A & B'),
    ('  ', 'tins'),
  ],
)
def test_categories(category, path):
  item = item_keywords.describe_items(
    np.array(['', 'tins', 'x']),
    np.array(['', category, 'Other > Y']),
    np.array([''] * 3),
  )[1]
  assert item.path == path


def test_a_root_that_all_share_is_left_out():
  items = item_keywords.describe_items(
    np.array(['', 'x', 'y']),
    np.array(['', 'R > A > B', 'R > C']),
    np.array([''] * 3),
  )
  assert [(i.kind, i.group) for i in items[1:]] == [('B', 'A'), ('C', 'C')]


def test_rare_words_first_but_not_unique_ones():
  others = ['rose lamp'] * 3 + ['lamp'] * 40
  words = dict(item_of('lamp rose xq7', '', '', others).words)
  assert words['rose'] > words['xq7']
  assert words['rose'] > words['lamp']


@pytest.mark.slow
def test_texts_do_not_depend_on_the_hash_seed():
  code = (
    'from dynllm_jax.facets import item_keywords; import numpy as np; '
    "t = np.array(['', 'girls retro kitchen gift dog', 'men salon home']); "
    'print(item_keywords.describe_items(t, t, t))'
  )
  printed = {
    subprocess.run(
      [sys.executable, '-c', code],
      check=True,
      capture_output=True,
      env={**os.environ, 'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('1', '2', '3')
  }
  assert len(printed) == 1


def test_description_and_unknown_writer():
  assert writing.describe(CONFIG) == 'rule-written (no language model)'
  for shared in ('windows', 'prompts'):
    bad = ml_collections.ConfigDict({'name': shared})
    with pytest.raises(
      InputError,
      match=(
        f"config.facets.writer.name: unknown writer '{shared}'; allowed: "
        'flax, openai, rules, or the full name of a module'
      ),
    ):
      writing.describe(bad)
