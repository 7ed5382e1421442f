"""What can be given to the command is listed, with its meaning."""

import re

import pytest

import dynllm_jax
from dynllm_jax import config as config_lib
from dynllm_jax.runs import command_line
from tests.testing.commands import command


@pytest.mark.parametrize(
  'args, system',
  [
    (['--help'], 'dynllm'),
    (['-h', '--config', 'demo:sasrec', '--minutes=5'], 'sasrec'),
  ],
)
def test_flags_and_fields_are_listed_with_their_meaning(args, system, tmp_path):
  words = ' '.join(command(*args, cwd=tmp_path).stdout.split())
  for name, _ in config_lib.flatten(config_lib.default(system).to_dict()):
    meaning = re.search(rf'- `config\.{name}`, `.*?`: (.*?) Allowed: ', words)
    assert meaning and len(meaning[1]) > 5, name

  flags = command_line.flags.FLAGS.flags_by_module_dict()
  for flag in flags[command_line.__name__]:
    assert re.search(rf'--(\[no\])?{flag.name}: \S', words), flag.name


def test_the_command_says_its_version(tmp_path):
  shown = command('--version', cwd=tmp_path).stdout
  assert shown == f'dynllm_jax {dynllm_jax.__version__}\n'
