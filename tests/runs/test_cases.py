"""The users of a report: their lists are the scores', and know no future."""

import json
import types

import jax
import numpy as np
import pytest

from dynllm_jax.objectives import scoring
from dynllm_jax.runs import cases
from dynllm_jax.types import BoundSystem
from tests.testing import logs
from tests.testing import replays
from tests.testing import tiny_runs
from tests.testing import variants


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with the texts of a facet bank."""
  folder = tmp_path_factory.mktemp('facets')
  (folder / 'texts.jsonl').write_text(
    ''.join(
      json.dumps({'row': n, 'text': f'text {n}'}) + '\n' for n in range(10)
    )
  )
  return folder


def collected(log, home):
  """Cases of an untrained system, and what it needs to score again."""
  config = variants.tiny_config('tgn')
  config.model.update({'copy_term': True, 'walk_term': True})
  tiny = tiny_runs.prepare(
    config, log, logs.one_shape(logs.random_inputs(log, padding=16))
  )
  state = tiny.first_state()
  bound = BoundSystem(tiny.system, state.params, tiny.inputs)
  run = types.SimpleNamespace(
    log=log, config=config, facet_texts=None, facets={'folder': str(home)}
  )
  return cases.collect(run, bound, state.memory), bound, state.memory


def test_a_list_is_the_items_of_the_highest_scores(home):
  log = tiny_runs.small_log()
  found, bound, memory = collected(log, home)
  now = log.times[log.validation_end]
  assert 3 < len(found) <= cases.NUM_USERS
  users = [int(np.flatnonzero(log.user_ids == c.user)[0]) for c in found]

  @jax.jit
  def score(bound, memory, items):
    return scoring.score(
      *bound.embed(
        memory,
        np.array(users, np.int32),
        np.full(len(users), now, np.int32),
        items,
        np.int32(now),
      ),
      bound.inputs.num_items,
    )

  items = np.arange(1, log.num_items + 1, dtype=np.int32)
  for case, user, scores in zip(
    found, users, score(bound, memory, items), strict=True
  ):
    best = np.argsort(-np.asarray(scores), kind='stable')[: cases.NUM_ITEMS]
    np.testing.assert_allclose(
      [item.score for item in case.recommended], scores[best], rtol=1e-5
    )
    # Lifts add up to what the score is above its mean.
    for item in case.recommended:
      assert set(item.lifts) == {'network', 'copy', 'walk'}
      assert sum(item.lifts.values()) == pytest.approx(
        item.score - float(scores.mean()), abs=1e-5
      )

    events = np.flatnonzero(log.users == user)
    assert case.num_past == np.sum(events < log.validation_end)
    assert case.num_past + case.num_next == len(events)
    assert all(time < case.time for time in case.past_times)
    assert all(time >= case.time for time in case.next_times)
    later = set(log.items[events[events >= log.validation_end]])
    for item in case.recommended:
      number = int(np.flatnonzero(log.item_ids == item.item)[0])
      assert item.bought == (number in later)
    assert set(case.facets) == {'crd', 'int', 'ctg', 'brd'}


def test_no_case_knows_what_comes_next(home):
  log = tiny_runs.small_log()
  other = replays.changed_future(log, log.validation_end, 'items')
  assert other.validation_end == log.validation_end
  before, after = collected(log, home)[0], collected(other, home)[0]
  known = ('user', 'time', 'num_past', 'past_times', 'facets')
  for case, again in zip(before, after, strict=True):
    for name in known:
      assert getattr(case, name) == getattr(again, name), name
    for item, same in zip(case.recommended, again.recommended, strict=True):
      assert item._replace(bought=False) == same._replace(bought=False)
