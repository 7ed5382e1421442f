"""Checkpoints that are no longer what was saved."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dynllm_jax.graph import pending_updates
from dynllm_jax.runs import run_folder
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.types import InputError
from dynllm_jax.types import TrainState

STATUS = {'epochs': 3, 'best_value': 0.1234, 'history': [{'loss': 0.5}]}


def state(seed):
  draw = np.random.default_rng(seed)
  return TrainState(
    step=jnp.int32(seed),
    params={'w': jnp.asarray(draw.random((200, 64), np.float32))},
    opt_state=(),
    memory={'m': jnp.zeros(2)},
    pending=pending_updates.empty_pending(2, 2, 2),
    key=jax.random.key(seed),
  )


@pytest.fixture
def folder(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save('best', 3, state(1), STATUS)
  return tmp_path


def test_what_is_restored_is_what_was_saved(folder):
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.status('best') == STATUS
    restored = checkpoints.restore('best', state(2))
  for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(state(1))):
    assert jnp.array_equal(left, right)


def test_a_part_that_came_later_may_be_absent(folder):
  """A field that is None has nothing to restore; one that is not is named."""
  newer = state(2).replace(memory={'m': jnp.zeros(2), 'counts': None})
  with Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore('best', newer)
    assert restored.memory['counts'] is None
    assert jnp.array_equal(restored.params['w'], state(1).params['w'])
    for counts in (jnp.zeros(()), jnp.zeros(3)):
      newer.memory['counts'] = counts
      with pytest.raises(InputError, match='memory.counts is'):
        checkpoints.restore('best', newer)


def test_a_flipped_bit_is_found_wherever_it_is(folder):
  """Or it is one that nothing reads; never is another state restored."""
  draw, found = np.random.default_rng(0), 0
  files = sorted(
    (path for path in (folder / 'checkpoints').rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  for path in [*files, *[files[-1]] * 10]:
    content = bytearray(path.read_bytes())
    if not content:
      continue
    damaged = content.copy()
    damaged[draw.integers(len(content))] ^= 1 << draw.integers(7)
    path.write_bytes(damaged)
    try:
      with Checkpoints(folder) as checkpoints:
        assert checkpoints.status('best') == STATUS
        restored = checkpoints.restore('best', state(2))
      np.testing.assert_array_equal(restored.params['w'], state(1).params['w'])
    except InputError as error:
      assert 'cannot be restored' in str(error)
      found += 1
    path.write_bytes(content)
  assert found >= 10


def test_another_digit_in_the_record_is_found(folder):
  (path,) = [
    path
    for path in (folder / 'checkpoints').rglob('*')
    if path.is_file() and b'0.1234' in path.read_bytes()
  ]
  path.write_bytes(path.read_bytes().replace(b'0.1234', b'0.9234'))
  with Checkpoints(folder) as checkpoints:
    for read in (
      checkpoints.status,
      lambda kind: checkpoints.restore(kind, state(2)),
    ):
      with pytest.raises(InputError, match='record is not as it was saved'):
        read('best')


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
  folder, monkeypatch
):
  def full(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: No space left on device')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', full)
  with Checkpoints(folder) as checkpoints:
    with pytest.raises(InputError, match='cannot be written .*No space left'):
      checkpoints.save('best', 4, state(2), STATUS)
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.epoch('best') == 3
    assert checkpoints.status('best') == STATUS


@pytest.mark.parametrize(
  'name',
  [
    *('[lr=0.003]', 'a[1', ']x[', 'a*b?', '#1 50% {1,2}', 'q\'u"o;te'),
    *('~', '-rf $HOME', 'été 日本', 'two\nlines'),
  ],
)
def test_a_run_folder_may_have_any_name(tmp_path, name):
  folder = tmp_path / name / 'run'
  run_folder.RunFolder(str(folder)).check()
  with run_folder.RunFolder(str(folder)).held():
    for epoch in (1, 2):
      with Checkpoints(folder) as checkpoints:
        checkpoints.save('latest', epoch, state(epoch), STATUS)
        checkpoints.save('best', epoch, state(epoch), STATUS)
  with Checkpoints(folder) as checkpoints:
    assert [checkpoints.epoch(kind) for kind in ('latest', 'best')] == [2, 2]
    assert checkpoints.status('best') == STATUS
    restored = checkpoints.restore('best', state(0))
  np.testing.assert_array_equal(restored.params['w'], state(2).params['w'])
  assert sorted(os.listdir(tmp_path)) == [name]
