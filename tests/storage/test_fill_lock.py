"""Two processes that want the same of a store."""

import os
import subprocess
import sys
import time

import pytest

from dynllm_jax.storage import fill_lock
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError
from tests.testing import fake_endpoint
from tests.testing import ROOT

ENCODE = """
import sys
from dynllm_jax import config as config_lib
from dynllm_jax.text import encoding
from dynllm_jax.text.encoders import openai_encoder
openai_encoder.CALL_TEXTS = 2
config = config_lib.default().facets.encoder
config.name, config.model, config.base_url = 'openai', 'm', sys.argv[1]
config.concurrency = 2
print(encoding.encode(config, [f'text {n}' for n in range(40)], sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_embed_once(tmp_path):
  def answer(body, number):
    del number
    time.sleep(0.05)
    vectors = [[len(text), 1] for text in body['input']]
    return 200, fake_endpoint.embeddings(vectors)

  with fake_endpoint.serve(answer) as server:
    both = [
      subprocess.Popen(
        [sys.executable, '-c', ENCODE, server.url, str(tmp_path)],
        cwd=ROOT,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
      )
      for _ in range(2)
    ]
    outs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
  assert len(server.calls) == 40 / 2
  # One may have come when all was there, so that it had nothing to wait for.
  first, second = sorted(outs, key=len)
  assert second in (
    first,
    f'waiting for another process that fills '
    f'{next(tmp_path.iterdir())}\n{first}',
  )


def test_what_another_appended_is_known_at_ones_turn(tmp_path):
  store, other = (Store(tmp_path, {'a': 1}) for _ in range(2))
  other.append([b'k' * 16], [b'x'])
  assert len(store) == 0
  lines = []
  with fill_lock.hold(store, lines.append):
    assert len(store) == 1
  assert not lines


def test_a_folder_that_cannot_be_written(tmp_path):
  store = Store(tmp_path, {'a': 1})
  (tmp_path / 'turn').mkdir()
  with pytest.raises(InputError, match='cannot be written'):
    with fill_lock.hold(store, print):
      pass
