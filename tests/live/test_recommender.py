"""What is live equals the evaluation, and no answer sees its future."""

import dataclasses
import datetime
import threading

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dynllm_jax import InputError
from dynllm_jax import Recommender
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking
from dynllm_jax.graph import successors
from dynllm_jax.live import answering
from dynllm_jax.live import batches
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.runs import prepared
from dynllm_jax.types import BoundSystem
from tests.testing import logs
from tests.testing import replays
from tests.testing import run_folders

# What depends on the training split, or on windows that are still open, is
# another thing in a log that ends earlier.
OF_ANY_LOG = {
  'projection': 'none',
  'facets': (),
  'neighborhood': False,
  'event_features': True,
  'copy_term': True,
  'count_terms': True,
  'count_successors': 0,
}
ALL_TERMS = {'event_features': True, 'item_id_embedding': True}


def make_run(variant, log, folder, **model):
  """The run folder of an untrained variant on a log, and the run."""
  config = run_folders.config_of(variant, log, folder)
  config.model.update(model)
  config.eval.batch_size = 2048
  workdir = str(folder / 'run')
  return workdir, run_folders.save_untrained(config, workdir)


@pytest.fixture(scope='module')
def log():
  """150 events of 12 users and 15 items, many of them at equal times."""
  return logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=70
  )


@pytest.fixture(scope='module')
def dynllm(log, tmp_path_factory):
  return make_run(
    'dynllm+text+counts', log, tmp_path_factory.mktemp('run'), **ALL_TERMS
  )


@pytest.fixture(scope='module')
def floor_folder(log, tmp_path_factory):
  """The folder of a system that compiles in no time."""
  return make_run('transitions', log, tmp_path_factory.mktemp('floor'))[0]


@pytest.fixture(scope='module')
def untouched(floor_folder):
  """For tests that change nothing."""
  return Recommender.restore(floor_folder, journal=None)


@pytest.fixture
def shop(floor_folder):
  return Recommender.restore(floor_folder, journal=None)


def evaluated(run, batch_size):
  """Ranks of validation and test, and the batches by which they were ranked."""
  plans = evaluate.split_plans(run.system, run.log, batch_size)
  run = dataclasses.replace(run, rank_plans=plans)
  ranked = prepared.rank_splits(
    run, prepared.initial_state(run), ('validation', 'test')
  )
  ranks = [ranks for ranks, _ in ranked.values()]
  stream = [part for s in ranked for part in run_folders.batches_of(plans[s])]
  return np.concatenate(ranks), stream


def observe_all(shop, log, stream):
  """Ranks of a stream that is observed in the given portions."""
  return np.concatenate(
    [
      shop.observe(run_folders.events_at(log, part), ranked=True).ranks
      for part in stream
    ]
  )


# ------------------------------------------------------- equal to an evaluation


def pytest_generate_tests(metafunc):
  """Each batch size, and each system, compiles programs of its own."""
  every = metafunc.config.getoption('all_combinations')
  if 'reads_a_past' in metafunc.fixturenames:
    metafunc.parametrize('reads_a_past', ['sasrec+walk', *['dynllm'] * every])
  if 'streamed' in metafunc.fixturenames:
    sizes = [1, 7, 2048] if every else [1]
    metafunc.parametrize('streamed', sizes, indirect=True, scope='module')


@pytest.fixture(scope='module')
def streamed(request, dynllm):
  """A recommender that was given validation and test in batches of a size.

  Returns:
    The recommender, its ranks, and those of the evaluation.
  """
  workdir, run = dynllm
  ranks, stream = evaluated(run, request.param)
  shop = Recommender.restore(workdir, until='train')
  known = np.asarray(shop._state.bound.inputs.facets.closes)
  assert np.any(known != run.inputs.facets.closes), 'no facet is withheld'
  return shop, observe_all(shop, run.log, stream), ranks


def test_a_stream_has_the_ranks_of_the_evaluation(dynllm, streamed):
  _, found, ranks = streamed
  log = dynllm[1].log
  assert len(ranks) == log.num_events - log.train_end > 20
  np.testing.assert_array_equal(found, ranks)
  # Its facets serve as in the evaluation, now that all has been observed.
  np.testing.assert_array_equal(
    streamed[0]._state.bound.inputs.facets.closes,
    dynllm[1].inputs.facets.closes,
  )


def test_what_was_seen_is_left_out_of_ranks_as_an_evaluation_does(
  log, tmp_path
):
  """Of a log without repeats; `config.eval.filter_seen` is 'auto'."""
  pairs = np.stack([log.users, log.items], axis=1)
  _, first = np.unique(pairs, axis=0, return_index=True)
  rows = np.sort(first)
  once = logs.make_log(log.users[rows], log.items[rows], log.times[rows])
  workdir, run = make_run('transitions', once, tmp_path)
  assert ranking.make_ranking(run.config, run.log).filter_seen
  ranks, stream = evaluated(run, 7)
  shop = Recommender.restore(workdir, until='train')
  np.testing.assert_array_equal(observe_all(shop, run.log, stream), ranks)


@pytest.mark.parametrize('variant', ['lightgcn', 'sasrec', 'transitions'])
def test_other_kinds_of_systems_have_them_too(log, tmp_path, variant):
  workdir, run = make_run(variant, log, tmp_path)
  ranks, stream = evaluated(run, 7)
  shop = Recommender.restore(workdir, until='train')
  np.testing.assert_array_equal(observe_all(shop, run.log, stream), ranks)


def test_new_users_and_items_rank_as_if_the_log_had_had_them(
  log, tmp_path_factory, monkeypatch
):
  """The tables double; an item may be recommended before its first event."""
  late = 60
  users, items = log.users.copy(), log.items.copy()
  users[-late:] = np.where(users[-late:] > 9, users[-late:] + 9, users[-late:])
  items[-late:] = np.where(items[-late:] > 9, items[-late:] + 9, items[-late:])
  whole = logs.make_log(users, items, log.times)
  _, run = make_run(
    'dynllm', whole, tmp_path_factory.mktemp('whole'), **OF_ANY_LOG
  )
  begun = logs.make_log(users[:-late], items[:-late], log.times[:-late])
  workdir, run_begun = make_run(
    'dynllm', begun, tmp_path_factory.mktemp('begun'), **OF_ANY_LOG
  )

  shop = Recommender.restore(workdir, until='train')
  known = len(shop.items)
  names = [str(name) for name in run.log.item_ids[1:]]
  columns = (run.log.titles, run.log.categories, run.log.brands)
  rows = zip(names, *(map(str, column[1:]) for column in columns))
  added = shop.add_items(list(rows))
  assert added.new_items == len(names) - known > 3

  state = prepared.initial_state(run)
  bound = BoundSystem(run.system, state.params, run.inputs)
  newest = shop.newest_time - run.log.start_time
  first = int(np.searchsorted(run.log.times, newest, 'right'))
  plan = batching.plan_batches(run.log.times, first, run.log.num_events, 7)
  how = ranking.make_ranking(run.config, run.log)
  _, ranks = evaluate.replay(bound, state.memory, plan, how)
  found = observe_all(shop, run.log, run_folders.batches_of(plan))
  np.testing.assert_array_equal(found, ranks)
  assert len(shop.users) > begun.num_users

  # Those of new items right after their first event are among them.
  taken = run.log.items[first:]
  earlier = np.tril(taken[:, None] == taken, -1).sum(axis=1)
  is_new = ~np.isin(run.log.item_ids[taken], begun.item_ids)
  second = is_new & (earlier == 1)
  assert second.sum() > 3
  assert np.mean(found[second] <= 10) == np.mean(ranks[second] <= 10) > 0

  # A table of transitions stays one beyond the size up to which runs have one.
  monkeypatch.setattr(successors, '_LARGEST_TABLE', begun.num_items)
  saved = shop._state.saved()
  restored = LiveState.from_saved(
    run_begun.system, run_begun.inputs, saved, how
  )
  assert 'now.counts.successors.items' not in saved.arrays
  jax.tree.map(
    np.testing.assert_array_equal,
    dict(restored.saved().arrays),
    dict(saved.arrays),
  )


def test_what_comes_later_changes_no_answer(log, tmp_path, reads_a_past):
  """Asked about a time at which facets of what was not observed would serve."""
  answers, facets = [], []
  cut = log.train_end
  for name, events in (
    ('as it is', log),
    ('changed', replays.changed_future(log, cut, 'items')),
  ):
    folder = tmp_path / name
    folder.mkdir()
    workdir, run = make_run(reads_a_past, events, folder)
    shop = Recommender.restore(workdir, until='train')
    time = shop.newest_time + 40 * 86_400
    users = sorted(shop.users)
    answers.append(shop.score(users, sorted(shop.items), time=time))
    facets.append(run.inputs.facets.closes > shop._state.newest)
  np.testing.assert_array_equal(*answers)
  assert all(map(np.any, facets)), 'no facet could have served'


# ------------------------------------------------------------------ the batches


def test_equal_batches_make_equal_states_whatever_is_asked(floor_folder, log):
  def states(ask):
    shop = Recommender.restore(floor_folder, journal=None)
    time = shop.newest_time
    for number in range(12):
      user, item = f'u{number % 5 + 1}', f'i{number % 7 + 1}'
      # Some at one time, some late, one by a user and on an item not yet seen.
      batch = shop.batch_of(
        [
          (user, item, time + number // 3),
          ('new', f'new {number % 2}', time + number - 5, 'a text'),
        ]
      )
      assert batches.from_json(batches.to_json(batch)) == batch
      shop.apply(batch)
      if ask:
        shop.recommend(user, exact=number % 2 == 0)
    return shop

  one, two = states(False), states(True)
  for name in ('_base', '_now', '_cache', '_pending', 'bound'):
    one_part, two_part = (getattr(s._state, name) for s in (one, two))
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.tree.leaves(one_part),
      jax.tree.leaves(two_part),
    )
  assert one.position == two.position == 12


def test_events_of_one_time_do_not_see_one_another(shop):
  """Whether they come in one call or in several."""
  time = shop.newest_time + 100
  whole = shop.observe([('u1', 'i1', time), ('u1', 'i2', time)], ranked=True)
  before = shop.recommend('u1', 15, time=time)
  third = shop.observe(('u1', 'i3', time), ranked=True)
  assert whole.late == third.late == 0
  # At that very time, an answer is from before all of them.
  after = shop.recommend('u1', 15, time=time)
  assert after.items == before.items
  assert shop.recommend('u1', 15, time=time + 1).items != before.items


def test_a_late_event_counts_as_of_the_newest_time(shop):
  time = shop.newest_time
  assert shop.observe(('u1', 'i1', time - 50)).late == 1
  assert shop.newest_time == time + 1  # one second after the log
  shop.observe(('u1', 'i1', time + 30))
  assert shop.observe(('u1', 'i2', time + 10)).late == 1
  assert shop.newest_time == time + 30


def test_nothing_compiles_unless_a_table_doubles(floor_folder, request):
  """New users and new items, one after the other; 1,000 of each if asked."""
  every = request.config.getoption('all_combinations')
  newcomers = 1000 if every else 200
  shop = Recommender.restore(floor_folder, journal=None)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: (
      compiled.append(name)
      if name == '/jax/core/compile/backend_compile_duration'
      else None
    )
  )

  def sizes():
    inputs = shop._state.bound.inputs
    graphs = inputs.user_graph, inputs.item_graph
    return (
      inputs.num_users,
      inputs.num_items,
      *((len(graph.times), graph.longest) for graph in graphs),
    )

  def visit(number):
    shop.observe((f'new {number}', f'thing {number}', time + number, 'a text'))
    return shop.recommend(f'new {number}')

  time = shop.newest_time + 1
  doubled, last = 0, 0
  for number in range(newcomers):
    before, compiled[:] = sizes(), []
    answer = visit(number)
    assert len(answer.items) == 10
    if sizes() != before:
      doubled, last = doubled + 1, number
    # What writes into a table is compiled when it is next written into.
    assert not compiled or number <= last + 1, number
  assert (6 if every else 3) < doubled < 30
  assert len(shop.users) == newcomers + 12
  assert len(shop.items) == newcomers + 15


def test_many_may_ask_while_one_writes(shop):
  time, faults = shop.newest_time + 1, []
  done = threading.Event()

  def ask():
    try:
      while not done.is_set():
        assert len(shop.recommend('u1', k=5).items) == 5
    except BaseException as error:
      faults.append(error)
      raise

  readers = [threading.Thread(target=ask) for _ in range(3)]
  for reader in readers:
    reader.start()
  for number in range(60):
    shop.observe((f'u{number % 12 + 1}', f'new {number % 20}', time + number))
  done.set()
  for reader in readers:
    reader.join()
  assert not faults


# ------------------------------------------------------------------ the answers


def test_answers_are_filtered(shop):
  best = shop.recommend('u1', k=15)
  assert sorted(best.items) == sorted(shop.items)
  assert list(best.scores) == sorted(best.scores, reverse=True)
  assert best.titles[0] == shop.title(best.items[0])
  scores = shop.score('u1', best.items)
  np.testing.assert_array_equal(scores, best.scores)

  first, second = best.items[:2]
  assert shop.recommend('u1', k=1).items == [first]
  assert shop.recommend('u1', k=1, exclude=[first, '?']).items == [second]
  assert shop.recommend('u1', k=9, candidates=[second]).items == [second]
  category = f'category {first.removeprefix("i")}'
  assert shop.recommend('u1', categories=[category]).items == [first]
  shop.observe(('somebody', first, shop.newest_time + 1))
  unseen = shop.recommend(['somebody', 'u1'], k=15, exclude_seen=True)
  assert first not in unseen[0].items and len(unseen[0].items) == 14
  assert len(unseen) == 2 and unseen[1].user == 'u1'


def test_many_users_are_answered_a_few_at_a_time(untouched, monkeypatch):
  users = [*untouched.users, 'nobody']
  asked = lambda: untouched.recommend(users, 5, exclude_seen=True)
  together = asked()
  monkeypatch.setattr(answering, '_MAX_SCORES', 0)
  assert len(users) % untouched._users_at_once()
  for one, other in zip(together, asked(), strict=True):
    assert (one.user, one.items) == (other.user, other.items)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_an_answer_is_explained(streamed):
  """Its terms add up to the score, and their parts to the terms."""
  shop = streamed[0]
  user = shop.users[0]
  best = shop.recommend(user, 15)
  explained = [shop.explain(user, item) for item in best.items]
  np.testing.assert_allclose(
    [why.score for why in explained], best.scores, rtol=1e-4, atol=1e-5
  )
  assert set(explained[0].terms) == {
    'network',
    'text',
    'copy',
    'walk',
    'counts',
  }
  for why in explained:
    assert sum(p.weight for p in why.copies) == pytest.approx(why.terms['copy'])
    if 0 < len(why.walks) < 5:
      walks = sum(walk.weight for walk in why.walks)
      assert walks == pytest.approx(why.terms['walk'], rel=1e-4)
    assert sum(f.attention for f in why.facets) == pytest.approx(1, rel=1e-4)
    assert {f.name for f in why.facets} == {'crd', 'int', 'ctg', 'brd'}
    assert all(0 <= d < 8 for f in why.facets for d in f.dimensions)
    earlier = [*why.copies, *why.walks, *why.texts, *why.latest]
    assert all(p.time <= shop.newest_time < why.time for p in earlier)
    assert all(p.item == why.item for p in why.copies)
  assert any(why.copies for why in explained)
  assert any(why.walks for why in explained)
  assert any(f.text for f in explained[0].facets)
  assert explained[0].latest and explained[0].texts
  assert shop.explain('nobody', best.items[0]).latest == []


@pytest.mark.parametrize(
  'form',
  [
    lambda rows: rows,
    lambda rows: [tuple(row.values()) for row in rows],
    pd.DataFrame,
    pa.Table.from_pylist,
  ],
  ids=['dicts', 'tuples', 'pandas', 'arrow'],
)
def test_events_come_in_many_forms(shop, form):
  time = shop.newest_time + 5
  rows = [
    {'user': 'u1', 'item': 'i2', 'time': time, 'title': 'Another title'},
    {'user': 'nobody yet', 'item': 'i3', 'time': time + 1, 'title': None},
  ]
  seen = shop.observe(form(rows))
  assert (seen.events, seen.new_users, seen.new_items) == (2, 1, 0)
  assert shop.title('i2') == 'Another title'
  assert shop.title('i3') != ''


def test_a_time_may_be_a_date(shop):
  time = datetime.datetime.fromtimestamp(shop.newest_time + 9, datetime.UTC)
  shop.observe(('u1', 'i1', time))
  assert shop.newest_time == int(time.timestamp())


@pytest.mark.parametrize(
  'events, words',
  [
    ([('u1', 'i1', 1.7e9), ('u1', '', 1.7e9)], r"events\[1\].item: ''"),
    ([{'user': 'u1', 'time': 5}], r'events\[0\].item: None'),
    (('u1', 'i1', 'today'), r"events\[0\].time: 'today'"),
    (('u1', 'i1', float('nan')), r'events\[0\].time: nan'),
    (('u1', 'i1', 4e9), r'time: 4000000000.0 .* not in the future'),
    (('u1', 'i1', -1), r'time: -1'),
    ({'user': 'u1', 'item': 'i1', 'when': 1}, "'when' is no field"),
    (7, 'events: 7 is not allowed'),
    (('u1', 'x' * 2000, 1), 'item: .* 1 to 1024 characters'),
    (('u1', 'a\0b', 1), 'without the character 0'),
    (('u1', 'i1', 1.7e9, 3), r'title: 3'),
  ],
)
def test_a_refused_event_changes_nothing(untouched, events, words):
  shop = untouched
  before = shop.position, len(shop.users), shop.newest_time
  with pytest.raises(InputError, match=words):
    shop.observe(events)
  assert before == (shop.position, len(shop.users), shop.newest_time)


@pytest.mark.parametrize(
  'ask, words',
  [
    (lambda shop: shop.recommend('u1', k=0), 'k: 0 .* 1 to the number'),
    (lambda shop: shop.recommend('u1', k=16), 'of items, 15'),
    (lambda shop: shop.recommend('u1', time=5), 'time: 5 .* newest event'),
    (lambda shop: shop.recommend(3.5), 'users: 3.5'),
    (lambda shop: shop.recommend(['']), r"users\[0\]: ''"),
    (lambda shop: shop.recommend('u1', candidates=['?']), r'candidates\[0\]'),
    (lambda shop: shop.recommend('u1', categories=['?']), 'no item is of'),
    (lambda shop: shop.score('u1', ['?']), "there is no item '\\?'"),
    (lambda shop: shop.similar_items('?'), "there is no item '\\?'"),
  ],
)
def test_a_question_that_cannot_be_answered(untouched, ask, words):
  with pytest.raises(InputError, match=words):
    ask(untouched)


def test_a_system_that_counts_has_no_vectors(untouched):
  assert not untouched.has_vectors
  with pytest.raises(InputError, match='only counts, .* no vectors'):
    untouched.similar_items('i1')
  why = untouched.explain('u1', 'i1')
  assert why.score == pytest.approx(untouched.score('u1', ['i1'])[0])
  assert why.latest and set(why.terms) >= {'network'}
  taken = untouched.purchases('u1')[0]
  (again, *_) = untouched.explain('u1', taken.item).copies
  assert (again.item, again.time, again.weight) == (taken.item, taken.time, 0)


def test_a_guest_leaves_the_state_alone(shop):
  """Also where texts of items come in meanwhile."""
  time, faults, done = shop.newest_time + 1, [], threading.Event()

  def ask():
    try:
      while not done.is_set():
        guest = shop.recommend_guest([('i1', time)], k=3)
        assert len(guest.items) == 3
    except BaseException as error:
      faults.append(error)
      raise

  reader = threading.Thread(target=ask)
  reader.start()
  for number in range(30):
    shop.add_items({'item': f'i{number % 15 + 1}', 'title': f'now {number}'})
  done.set()
  reader.join()
  assert not faults and len(shop.users) == 12


def test_a_system_without_a_memory_says_what_it_cannot(log, tmp_path):
  workdir, _ = make_run('mf', log, tmp_path)
  shop = Recommender.restore(workdir, journal=None)
  best = shop.recommend('u1', k=3)
  assert shop.similar_items('i1', k=3).items
  time = shop.newest_time + 1
  shop.observe(('u1', 'i1', time))
  assert shop.recommend('u1', k=3).items == best.items
  for event in (('u1', 'new', time), ('new', 'i1', time)):
    with pytest.raises(
      InputError, match="'new' is not known to the run, .* mf"
    ):
      shop.observe(event)
  with pytest.raises(InputError, match="users: 'new' is not known"):
    shop.recommend('new')


# -------------------------------------------------------------- the run folder


def test_a_log_whose_files_are_gone_is_served(log, tmp_path):
  workdir, run = make_run('popularity', log, tmp_path)
  for name in ('events.csv', 'items.csv'):
    (tmp_path / name).unlink()
  moved = tmp_path / 'elsewhere'
  (tmp_path / 'data').rename(moved)
  shop = Recommender.restore(workdir, journal=None, data_dir=str(moved))
  assert shop.newest_time == run.log.start_time + run.log.times[-1]

  with pytest.raises(InputError, match='config.data.dir: the prepared log'):
    Recommender.restore(workdir, journal=None)
  for folder in (moved / 'facets').iterdir():
    folder.rename(tmp_path / folder.name)
  with pytest.raises(InputError, match='does not have the facets'):
    Recommender.restore(workdir, journal=None, data_dir=str(moved))
  with pytest.raises(InputError, match='has no config.json'):
    Recommender.restore(str(tmp_path), journal=None)
  with pytest.raises(InputError, match="until: 'test' .* validation, log"):
    Recommender.restore(workdir, until='test')
