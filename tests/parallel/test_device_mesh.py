"""Meshes: the same figures on any, and what is refused."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.parallel import device_mesh
from dynllm_jax.types import InputError
from tests.testing import commands
from tests.testing import logs
from tests.testing import ROOT
from tests.testing import variants


def learned(name):
  module = config_lib.system_module(name)
  return module.build(config_lib.default(name).model).feed != 'none'


LEARNED = [*filter(learned, config_lib.system_names()), 'dynllm+text+counts']
SHAPES = ('8x1', '1x8', '4x2')


def pytest_generate_tests(metafunc):
  if 'shapes' in metafunc.fixturenames:
    every = metafunc.config.getoption('all_combinations')
    # One shape each, so that all are seen. dynllm+text+counts has all that
    # dynllm has, the memories of four others are read and written as TGN's are,
    # and HSTU's layers alone differ from eSASRec's.
    alike = ('dynllm', 'dynshare', 'dyrep', 'jodie', 'dmf', 'hstu')
    names = [name for name in LEARNED if every or name not in alike]
    metafunc.parametrize(
      'variant, shapes',
      [
        (name, SHAPES if every else (SHAPES[(k + 2) % 3],))
        for k, name in enumerate(names)
      ],
    )


@pytest.mark.slow
def test_eight_devices_do_what_one_does(variant, shapes, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.testing.meshes',
      str(tmp_path),
      variant,
      *shapes,
    ],
    cwd=ROOT,
    env=commands.on_devices(8),
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.stdout.strip() == 'equal', done.stderr[-2000:]


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('mesh.data', 1000, 'config.mesh: 1000 x 1'),
    ('mesh.nodes', 0, 'config.mesh'),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(field, value, words):
  config = variants.tiny_config('dynllm')
  config.mesh[field.removeprefix('mesh.')] = value
  config.train.batch_size = config.eval.batch_size = 1000
  with pytest.raises(InputError, match=words):
    device_mesh.make_mesh(config)


def test_a_batch_that_the_mesh_does_not_divide_is_refused(monkeypatch):
  config = variants.tiny_config('dynllm')
  config.mesh.data, config.train.batch_size = 8, 20
  devices = jax.devices()[:1] * 8
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  with pytest.raises(InputError, match='train.batch_size: 20 .*multiple of 8'):
    device_mesh.make_mesh(config)


def test_bytes_are_counted_by_path():
  mesh = device_mesh.make_mesh(variants.tiny_config('dynllm'))
  tree = device_mesh.put_on_mesh(
    mesh, {'a': {'b': np.zeros([3, 5], np.float32)}}
  )
  assert device_mesh.bytes_per_device(tree) == {'a.b': 3 * 5 * 4}
  assert len(mesh.devices.ravel()) == len(jax.devices())


@pytest.mark.parametrize('count', [2, 3, 8, 13])
def test_blocks_hold_every_row_once(count):
  """Of an index, a table, and through shapes alone: no device is needed."""
  log = logs.random_log(1, num_users=11, num_items=8, num_events=90)
  inputs = jax.tree.map(np.asarray, logs.random_inputs(log, padding=5))
  mesh = jax.sharding.AbstractMesh((1, count), ('data', 'nodes'))
  blocks = device_mesh.cut_into_blocks(mesh, inputs)
  text = np.concatenate([blocks.item_text.block(k) for k in range(count)])
  np.testing.assert_array_equal(text[: log.num_items + 1], inputs.item_text)
  assert text.shape == blocks.item_text.shape
  assert not text[log.num_items + 1 :].any()
  for whole, part in (
    (inputs.user_graph, blocks.user_graph),
    (inputs.item_graph, blocks.item_graph),
  ):
    nodes = len(whole.offsets) - 1
    size = -(-nodes // count)
    for node in range(nodes):
      at, row = divmod(node, size)
      low, high = part.offsets.block(at)[row : row + 2]
      for name in ('neighbors', 'times'):
        np.testing.assert_array_equal(
          getattr(part, name).block(at)[low:high],
          getattr(whole, name)[whole.offsets[node] : whole.offsets[node + 1]],
        )
    assert part.times.block(0).shape[0] * count == part.times.shape[0]
