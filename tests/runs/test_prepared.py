"""Where a run keeps what was compiled."""

import jax
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.runs import prepared

FIELD = 'jax_compilation_cache_dir'


@pytest.mark.parametrize('told', [None, '/of/the/user'])
def test_compiled_programs_are_kept_where_jax_was_told(told, tmp_path):
  config = config_lib.default('popularity')
  config.data.dir = str(tmp_path)

  before = getattr(jax.config, FIELD)
  try:
    jax.config.update(FIELD, told)
    prepared.keep_compiled(config)
    assert getattr(jax.config, FIELD) == (told or str(tmp_path / 'compiled'))
  finally:
    jax.config.update(FIELD, before)
