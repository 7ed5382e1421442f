"""From log to score with real facets: the future changes nothing earlier."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax.engine import feeds
from dynllm_jax.facets import facet_bank
from dynllm_jax.graph.inputs import build_inputs
from dynllm_jax.types import TrainState
from tests.testing import logs
from tests.testing import replays
from tests.testing import tiny_runs
from tests.testing import variants

pytestmark = pytest.mark.slow

NUM_EVENTS = 150  # of `tiny_runs.small_log`, and no other log has more
NUM_FACETS = 255  # above the facets and texts of any log here


def inputs_of(log, config, folder):
  """Everything a system reads, made from the log as a run makes it.

  In a folder of its own: nothing is taken from what another log has left. All
  logs have the shapes of the longest, so that they share a program.
  """
  folder = folder / str(len(list(folder.iterdir())))
  facets, _ = facet_bank.build(
    config.facets, log, str(folder), lambda line: None
  )
  text = facet_bank.item_text(config.facets.encoder, log, str(folder))
  padding = replays.BATCH + NUM_EVENTS - log.num_events
  inputs = build_inputs(log, text, of_one_shape(facets), padding)
  return jax.tree.map(jnp.asarray, logs.one_shape(inputs, NUM_EVENTS))


def of_one_shape(facets):
  """Facets with rows behind them that no user has."""

  def pad(rows):
    return np.pad(rows, [(0, NUM_FACETS - len(rows))] + [(0, 0)] * rows[0].ndim)

  return facets.replace(
    texts=pad(facets.texts), closes=pad(facets.closes), index=pad(facets.index)
  )


class Trained(NamedTuple):
  """DynLLM after an epoch, with its facets' windows of ten days.

  Attributes:
    config: the whole configuration, with all terms.
    run: on `tiny_runs.small_log`.
    state: after the epoch.
    record: of the epoch.
    scores: of a replay of the whole log.
  """

  config: ml_collections.ConfigDict
  run: tiny_runs.TinyRun
  state: TrainState
  record: dict
  scores: np.ndarray

  def all_scores(self, inputs, log):
    """Scores of a replay of another log, with these parameters."""
    return replays.all_scores(
      self.run.system, self.state.params, self.state.memory, inputs, log
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  config = variants.tiny_config('dynllm+text+counts')
  config.facets.window_days = 10.0
  config.facets.encoder.dim = 16
  config.model.event_features = config.model.item_id_embedding = True
  log = tiny_runs.small_log()
  inputs = inputs_of(log, config, tmp_path_factory.mktemp('inputs'))
  assert np.sum(inputs.facets.closes > 0) > 20
  run = tiny_runs.prepare(config, log, inputs)
  state, record = run.epoch(run.first_state())
  one = Trained(config, run, state, record, np.zeros(0))
  return one._replace(scores=one.all_scores(inputs, log))


@pytest.mark.parametrize('how', ['changed', 'permuted', 'truncated', 'items'])
def test_the_future_changes_no_earlier_score(trained, tmp_path, how):
  # Another future, from the beginning of a time after the training split on.
  log = trained.run.log
  cut = int(np.searchsorted(log.times, log.times[log.validation_end - 2]))
  assert cut > log.train_end
  other = replays.changed_future(log, cut, how)
  expected = trained.scores
  actual = trained.all_scores(inputs_of(other, trained.config, tmp_path), other)

  # With other items alone, users and times stand, and so do all scores of the
  # time at the cut: nothing sees its own time.
  end = cut
  if how == 'items':
    end = int(np.searchsorted(log.times, log.times[cut], side='right'))
    assert end - cut >= 2
  np.testing.assert_array_equal(actual[:end], expected[:end])
  if how != 'truncated':  # and the new future is seen once it is past
    assert not np.array_equal(actual[end:], expected[end:])


def test_training_does_not_see_the_future(trained, tmp_path):
  """The same parameters come out, whatever follows the training split."""
  run = trained.run
  other = replays.changed_future(run.log, run.log.train_end, 'changed')
  assert other.train_end == run.log.train_end
  assert not np.array_equal(other.items, run.log.items)
  plan = feeds.training_plan(run.system, other, run.plan.batch_size)
  other_run = run._replace(
    log=other, plan=plan, inputs=inputs_of(other, trained.config, tmp_path)
  )
  state, record = other_run.epoch(other_run.first_state())
  assert record['loss'] == trained.record['loss']
  variants.assert_trees_equal(
    (state.params, state.memory.user.time),
    (trained.state.params, trained.state.memory.user.time),
  )


NUM_KNOWN = 12  # items that are sold before the cut of `log_of_catalogue`


def log_of_catalogue(num_items, num_sold, title=''):
  """A log that sells items above NUM_KNOWN late, and where that begins.

  Args:
    num_items: all there are.
    num_sold: those that are ever sold.
    title: of all items above NUM_KNOWN, '' for a title each.
  """
  log = tiny_runs.small_log()
  cut = int(np.searchsorted(log.times, log.times[log.validation_end - 2]))
  items = 1 + (log.items - 1) % NUM_KNOWN
  items[cut:] = 1 + np.arange(log.num_events - cut) % num_sold
  made = logs.make_log(log.users, items, log.times, log.num_users, num_items)
  later = (np.arange(num_items + 1) > NUM_KNOWN) & bool(title)
  return dataclasses.replace(
    made, titles=np.where(later, title, made.titles)
  ), cut


def with_known_rows_of(old, new):
  """A table of parameters, its rows of known items those of another."""
  same = old.shape == new.shape
  return old if same else new.at[: NUM_KNOWN + 1].set(old[: NUM_KNOWN + 1])


def test_items_that_appear_later_change_no_earlier_score(trained, tmp_path):
  """Rewritten, removed or added: what is known is scored as before.

  The facets stand: how much their rules make of a word depends on the whole
  item table (SPEC 5.3).
  """
  run = trained.run
  log, cut = log_of_catalogue(15, 15)
  inputs = inputs_of(log, trained.config, tmp_path)
  first = run._replace(log=log, inputs=inputs).first_state()
  score = functools.partial(replays.all_scores, run.system)
  expected = score(first.params, first.memory, inputs, log)

  for catalogue in ((15, 15, 'some other thing'), (15, 12), (18, 18)):
    other, _ = log_of_catalogue(*catalogue)
    altered = inputs_of(other, trained.config, tmp_path)
    altered = altered.replace(facets=inputs.facets)
    own = run._replace(log=other, inputs=altered).first_state()
    fitted = jax.tree.map(with_known_rows_of, first.params, own.params)
    actual = score(fitted, own.memory, altered, other)
    np.testing.assert_allclose(
      actual[:cut, :NUM_KNOWN], expected[:cut, :NUM_KNOWN], atol=1e-5
    )
    # A later item's own score, and all scores once one is past, are others.
    later = actual[:, NUM_KNOWN:15] - expected[:, NUM_KNOWN:]
    assert np.abs(later).max() > 1e-3
