"""From log to score with real facets: the future changes nothing earlier."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.facets import facet_bank
from dynllm_jax.graph.inputs import build_inputs
from tests.testing import logs
from tests.testing import replays
from tests.testing import tiny_runs
from tests.testing import variants

pytestmark = pytest.mark.slow

LONGEST = 255  # above every row's length, so that all logs share a program


def dynllm_config():
  """DynLLM with its text term, and facets of windows of ten days."""
  config = variants.tiny_config('dynllm+text+counts')
  config.facets.window_days = 10.0
  config.facets.encoder.dim = 16
  return config


def inputs_of(log, config, folder):
  """Everything a system reads, made from the log as a run makes it.

  In a folder of its own: nothing is taken from what another log has left.
  """
  folder = folder / str(len(list(folder.iterdir())))
  facets, _ = facet_bank.build(
    config.facets, log, str(folder), lambda line: None
  )
  text = facet_bank.item_text(config.facets.encoder, log, str(folder))
  inputs = jax.tree.map(
    jnp.asarray, build_inputs(log, text, facets, replays.BATCH)
  )
  fixed = lambda graph: graph.replace(longest=LONGEST)
  return inputs.replace(
    user_graph=fixed(inputs.user_graph),
    item_graph=fixed(inputs.item_graph),
    same_time=fixed(inputs.same_time),
  )


@pytest.mark.parametrize('how', ['changed', 'permuted', 'truncated', 'items'])
def test_the_future_changes_no_earlier_score(tmp_path, how):
  config = dynllm_config()
  config.model.event_features = True
  log = tiny_runs.small_log()
  inputs = inputs_of(log, config, tmp_path)
  assert len(inputs.facets.closes) > 20
  run = tiny_runs.prepare(config, log, inputs)
  state, _ = run.epoch(run.first_state())

  # Another future, from the beginning of a time after the training split on.
  cut = int(np.searchsorted(log.times, log.times[log.validation_end - 2]))
  assert cut > log.train_end
  other = replays.changed_future(log, cut, how)

  altered = inputs_of(other, config, tmp_path)
  score = functools.partial(
    replays.all_scores, run.system, state.params, state.memory
  )
  expected, actual = score(inputs, log), score(altered, other)

  # With other items alone, users and times stand, and so do all scores of the
  # time at the cut: nothing sees its own time.
  end = cut
  if how == 'items':
    end = int(np.searchsorted(log.times, log.times[cut], side='right'))
    assert end - cut >= 2
  np.testing.assert_array_equal(actual[:end], expected[:end])
  if how != 'truncated':  # and the new future is seen once it is past
    assert not np.array_equal(actual[end:], expected[end:])


def test_training_does_not_see_the_future(tmp_path):
  """The same parameters come out, whatever follows the training split."""
  config = dynllm_config()
  log = tiny_runs.small_log()
  other = replays.changed_future(log, log.train_end, 'changed')
  assert other.train_end == log.train_end

  def train(log):
    run = tiny_runs.prepare(config, log, inputs_of(log, config, tmp_path))
    return run.epoch(run.first_state())

  (state, record), (other_state, other_record) = train(log), train(other)
  assert record['loss'] == other_record['loss']
  variants.assert_trees_equal(
    (state.params, state.memory.user.time),
    (other_state.params, other_state.memory.user.time),
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


def test_items_that_appear_later_change_no_earlier_score(tmp_path):
  """Rewritten, removed or added: what is known is scored as before.

  The facets stand: how much their rules make of a word depends on the whole
  item table (SPEC 5.3).
  """
  config = dynllm_config()
  config.model.event_features = config.model.item_id_embedding = True
  log, cut = log_of_catalogue(15, 15)
  inputs = inputs_of(log, config, tmp_path)
  run = tiny_runs.prepare(config, log, inputs)
  params = run.first_state().params
  score = functools.partial(replays.all_scores, run.system)
  expected = score(params, run.first_state().memory, inputs, log)

  for catalogue in ((15, 15, 'some other thing'), (15, 12), (18, 18)):
    other, _ = log_of_catalogue(*catalogue)
    altered = inputs_of(other, config, tmp_path).replace(facets=inputs.facets)
    own = tiny_runs.prepare(config, other, altered).first_state()
    fitted = jax.tree.map(with_known_rows_of, params, own.params)
    actual = score(fitted, own.memory, altered, other)
    np.testing.assert_allclose(
      actual[:cut, :NUM_KNOWN], expected[:cut, :NUM_KNOWN], atol=1e-5
    )
    # A later item's own score, and all scores once one is past, are others.
    later = actual[:, NUM_KNOWN:15] - expected[:, NUM_KNOWN:]
    assert np.abs(later).max() > 1e-3
