"""An export is read by JAX alone, and says what the model says."""

import json
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from dynllm_jax import Recommender
from dynllm_jax.serving import export_mode


@pytest.fixture(scope='module')
def shop(run):
  return Recommender.restore(str(run), journal=None)


def test_an_export_is_what_the_model_is(shop, tmp_path):
  export_mode.write(shop, tmp_path)
  about = json.loads((tmp_path / 'export.json').read_text())
  vectors = np.load(tmp_path / 'item_vectors.npy')
  assert vectors.shape == (30, about['dim'])
  assert np.load(tmp_path / 'item_ids.npy').tolist() == list(shop.items)
  table = pq.read_table(tmp_path / 'items.parquet')
  assert table['item'].to_pylist() == list(shop.items)
  assert table['title'].to_pylist() == list(shop.titles)
  np.testing.assert_array_equal(table['vector'].to_pylist(), vectors)

  frozen = shop.frozen()
  stored = safetensors.numpy.load_file(tmp_path / 'parameters.safetensors')
  leaves = jax.tree.leaves(frozen.bound.params)
  assert len(stored) == len(leaves)
  assert sum(map(np.size, stored.values())) == sum(map(np.size, leaves))

  # The example, with the modules of this package out of reach.
  script = (tmp_path / 'load_export.py').read_text() + (
    '\n  assert "dynllm_jax" not in sys.modules\n'
  )
  (tmp_path / 'load_export.py').write_text(script)
  done = subprocess.run(
    [sys.executable, '-P', 'load_export.py', '.', 'u7'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split('\t') for line in done.stdout.splitlines()]

  time = shop.newest_time + 1
  scores = shop.score('u7', shop.items, time)
  best = np.argsort(-scores, kind='stable')[:10]
  assert [item for item, _ in rows] == [shop.items[row] for row in best]
  np.testing.assert_allclose(
    [float(score) for _, score in rows], scores[best], atol=1e-4
  )
