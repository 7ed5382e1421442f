"""Configurations and small files for the tests of the data sources."""

import gzip
import json

import ml_collections
import pytest

from dynllm_jax import config as config_lib


@pytest.fixture
def make_config(tmp_path):
  """`make_config(field=value)`: `config.data` with small thresholds."""

  def make(**fields):
    config = config_lib.default().data
    config.unlock()
    config.min_user_items = config.min_item_users = 1
    config.size, config.dir = 'demo', str(tmp_path / 'store')
    for field, value in fields.items():
      config[field] = (
        ml_collections.ConfigDict(value) if isinstance(value, dict) else value
      )
    return config

  return make


@pytest.fixture
def write(tmp_path):
  """`write(name, content)`: a file of text, bytes or JSON objects; its path."""

  def make(name, content):
    path = tmp_path / name
    if isinstance(content, list):
      content = ''.join(json.dumps(row) + '\n' for row in content)
    if isinstance(content, str):
      content = content.encode()
    path.write_bytes(
      gzip.compress(content) if name.endswith('.gz') else content
    )
    return str(path)

  return make
