"""Bad values are found before any work, all of them at once."""

import ml_collections
import pytest

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax.runs import config_check
from dynllm_jax.runs import config_reference
from dynllm_jax.types import InputError
from tests.testing import ROOT

NAN, INF = float('nan'), float('inf')
# A value of each field that is refused, of the field's type. Fields that are
# True or False have none, nor have texts that may be anything.
BAD = {
  'data.source': 'nowhere',
  'data.events': 'none.csv',
  'data.items': 'none.csv',
  'data.journal': 'none.parquet',
  'data.user_column': '',
  'data.item_column': 'user_id',
  'data.time_column': '',
  'data.delimiter': '"',
  'data.quoting': 'single',
  'data.encoding': 'utf9',
  'data.where': ml_collections.ConfigDict({'rating': '>=four'}),
  'data.time_unit': 'h',
  'data.bad_rows': 'keep',
  'data.items_missing': 'drop',
  'data.sample_users': 0.0,
  'data.sample_seed': -1,
  'data.min_user_items': -1,
  'data.min_item_users': -1,
  'data.size': 'large',
  'data.simulation_seed': -1,
  'data.dir': 's3://bucket/data',
  'facets.window_days': 0.0,
  'facets.device_gib': NAN,
  'facets.writer.name': 'nobody',
  'facets.writer.max_input_tokens': 0,
  'facets.writer.max_output_tokens': 0,
  'facets.writer.temperature': -0.1,
  'facets.writer.seed': -1,
  'facets.writer.max_attempts': 0,
  'facets.writer.max_failure_rate': 1.1,
  'facets.writer.form': 'tight',
  'facets.writer.prompt_version': 3,
  'facets.writer.tokens_per_s': -1.0,
  'facets.writer.base_url': 'host:8000',
  'facets.writer.concurrency': 0,
  'facets.writer.timeout_s': 0.0,
  'facets.writer.num_retries': -1,
  'facets.writer.max_calls': -1,
  'facets.writer.max_tokens': -1,
  'facets.writer.price_per_million_input': -1.0,
  'facets.writer.price_per_million_output': -1.0,
  'facets.encoder.name': 'nobody',
  'facets.encoder.dim': 0,
  'facets.encoder.pooling': 'max',
  'facets.encoder.normalize': 'maybe',
  'facets.encoder.max_length': -1,
  'facets.encoder.batch_tokens': -1,
  'facets.encoder.base_url': 'ftp://host',
  'facets.encoder.concurrency': 0,
  'facets.encoder.timeout_s': INF,
  'facets.encoder.num_retries': -1,
  'facets.encoder.max_calls': -1,
  'facets.encoder.max_tokens': -1,
  'train.num_epochs': -1,
  'train.batch_size': 0,
  'train.learning_rate': NAN,
  'train.warmup_steps': -1,
  'train.final_learning_rate': 2.0,
  'train.max_gradient_norm': 0.0,
  'train.max_time_gradient_norm': 0.0,
  'train.loss': 'hinge',
  'train.margin': -1.0,
  'train.softmax_power': -0.1,
  'train.num_negatives': 0,
  'train.negatives': 'hard',
  'train.regularization': INF,
  'train.patience': 0,
  'train.chunk': 0,
  'train.precision': 'half',
  'eval.batch_size': 0,
  'eval.ks': (0,),
  'eval.candidates': 'some',
  'eval.filter_seen': 'often',
  'eval.block_size': 0,
  'eval.validation_events': -1,
  'eval.compare': ('mf',),
  'mesh.data': -1,
  'mesh.nodes': 0,
  'mesh.start_timeout_s': 0.0,
  'seed': -1,
}
# Only one writer or encoder reads these, which checks them where it is chosen.
BY_CHOICE = {
  'facets.writer.model',
  'facets.writer.dtype',
  'facets.writer.weights',
  'facets.writer.batch_size',
  'facets.writer.devices_per_copy',
  'facets.encoder.model',
}
ANY_TEXT = {f'data.{r}_column' for r in ('title', 'category', 'brand')} | {
  'data.items_item_column',
  'data.items_header',
}


def make_config():
  """A configuration in which nothing is wrong."""
  config = config_lib.default('repeat')
  config.data.source = 'simulated'
  config.data.size = 'demo'
  return config


def put(config, field, value):
  above, _, name = field.rpartition('.')
  section = config
  for part in filter(None, above.split('.')):
    section = section[part]
  with section.unlocked(), section.ignore_type():
    section[name] = value


def test_every_field_has_a_value_that_is_refused():
  found = dict(config_lib.flatten(make_config().to_dict()))
  open_fields = BY_CHOICE | ANY_TEXT
  for field, value in found.items():
    if not field.startswith('model.') and not isinstance(value, bool):
      assert field in BAD.keys() | open_fields, field


@pytest.mark.parametrize('field', BAD)
def test_a_bad_value_is_refused(field, tmp_path):
  config = make_config()
  config_check.check(config)
  put(config, field, BAD[field])
  if field == 'data.items':
    (tmp_path / 'log.csv').write_text('user_id,item_id,timestamp')
    put(config, 'data.events', str(tmp_path / 'log.csv'))
  with pytest.raises(InputError, match=f'config.{field}'):
    config_check.check(config)


def test_a_part_that_a_network_does_not_have_is_not_configured():
  config = make_config()
  config.model = config_lib.default('dynllm').model
  config.model.network = 'tgn'
  config_check.check(config)
  config.model.projection = 'none'
  with pytest.raises(InputError, match="projection: 'none' .*: 'interval'"):
    config_check.check(config)


def test_all_that_is_wrong_is_said_at_once():
  config = make_config()
  fields = [field for field in BAD if field not in ('data.items', 'seed')]
  config.data.source = 'event_log'
  for field in fields:
    if not field.startswith(('data.source', 'data.size', 'mesh')):
      put(config, field, BAD[field])
  put(config, 'model.depth', 0)
  with pytest.raises(checks.Faults) as caught:
    config_check.check(config)
  text = str(caught.value)
  assert len(caught.value.lines) > 50
  for field in (
    'data.bad_rows',
    'data.events',
    'facets.window_days',
    'facets.writer.name',
    'facets.encoder.pooling',
    'train.loss',
    'eval.ks',
    'eval.compare',
    'model.depth',
  ):
    assert f'config.{field}: ' in text, field


# ------------------------------------------------------------- the reference


@pytest.mark.parametrize('name', config_lib.system_names())
def test_every_field_has_a_meaning(name):
  if '.' in name:
    return
  for field in config_reference.fields(config_lib.default(name)):
    assert len(field.meaning.split()) > 1, field.name
    assert field.allowed


def test_the_reference_is_what_the_code_says():
  page = (ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8')
  assert page == config_reference.page()
