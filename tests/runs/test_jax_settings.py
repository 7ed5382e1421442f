"""When loops become CUDA graphs."""

import importlib.util
import os

import jax
import pytest

from dynllm_jax.runs import jax_settings

_OWN = '--xla_gpu_enable_command_buffer='


@pytest.mark.parametrize(
  'version, plugin, before, after',
  [
    ((0, 11, 2), True, '', jax_settings.CUDA_GRAPHS),
    ((0, 12, 0), True, '--a=b', f'--a=b {jax_settings.CUDA_GRAPHS}'),
    ((0, 11, 2), True, _OWN, _OWN),
    ((0, 11, 2), False, '--a=b', '--a=b'),
    ((0, 10, 2), True, '--a=b', '--a=b'),
  ],
)
def test_graphs_of_loops_are_asked_for_where_they_are_sound(
  version, plugin, before, after, monkeypatch
):
  monkeypatch.setattr(jax, '__version_info__', version)
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: plugin and name == 'jax_cuda13_plugin',
  )
  monkeypatch.setenv('XLA_FLAGS', before)
  jax_settings.use_cuda_graphs()
  assert os.environ['XLA_FLAGS'] == after
