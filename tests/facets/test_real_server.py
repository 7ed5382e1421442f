"""The writer `openai` through llama-cpp-python's server; else all is skipped.

    make test-server

DYNLLM_LLAMA_CPP names a Python that has llama-cpp-python[server], DYNLLM_GGUF
the file of a chat model, SmolLM2-135M-Instruct.
"""

import pytest

from configs import demo
from dynllm_jax.datasets import loading
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.types import InputError
from experiments import facet_bundle
from tests.testing import llama_server

_WINDOWS = 10


@pytest.mark.skipif(
  not (llama_server.PYTHON and llama_server.MODEL),
  reason='DYNLLM_LLAMA_CPP names no Python with llama-cpp-python, or '
  'DYNLLM_GGUF no model',
)
def test_windows_are_written_through_a_server_of_somebody_else(
  tmp_path, monkeypatch
):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  config = demo.get_config()
  config.data.dir = str(tmp_path / 'data')
  log = loading.load(config.data, print)
  profiles = windows.profiles(log, windows.window_seconds(90.0))
  sample = facet_bundle.sampled(profiles, _WINDOWS)
  fields, lines = config.facets.writer, []
  fields.update(
    name='openai',
    model='smollm2',
    form='guided',
    prompt_version=2,
    max_output_tokens=96,
    max_attempts=1,
    num_retries=1,
  )

  def write():
    folder = str(tmp_path / 'written')
    return writing.write(fields, log, sample, folder, lines.append)

  with llama_server.serve(tmp_path) as server:
    fields.base_url = server.url
    got = write()
    # It knows a schema, though not as OpenAI's `json_schema`.
    assert server.statuses() == [500, 500, *[200] * _WINDOWS]
  assert [line.endswith('JSON object with a schema') for line in lines].count(
    True
  ) == 1

  # Each was read at the first attempt, and says something.
  assert got.num_failed == 0
  assert got.index.shape == (_WINDOWS, 4)
  assert got.index.any(axis=1).all() and len(got.texts) > _WINDOWS

  # The server is gone: what was answered is kept, and nothing else is had.
  again = write()
  assert again.texts == got.texts and (again.index == got.index).all()
  fields.seed = 1
  with pytest.raises(InputError, match='base_url: .* failed 2 times in a row'):
    write()
