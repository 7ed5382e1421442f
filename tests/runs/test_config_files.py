"""Config files are found by name, in a checkout and in a wheel."""

import os
import shutil
import subprocess
import sys

import pytest

import dynllm_jax
from dynllm_jax.runs import config_files
from tests.testing import ROOT


@pytest.mark.parametrize('named', ['demo', 'demo.py', 'configs/demo.py'])
def test_a_file_of_the_package_is_found_by_name(named, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_files.find(f'{named}:tgn+walk') == (
    f'{ROOT}/configs/demo.py:tgn+walk'
  )


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'demo.py').write_text('')
  for named in ('demo.py:tgn', 'elsewhere/demo', 'nothing'):
    assert config_files.find(named) == named
  assert config_files.names() == sorted(
    path.stem for path in (ROOT / 'configs').glob('*.py')
  )


def test_a_program_has_the_configuration_of_a_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = dynllm_jax.get_config('event_log:tgn+counts')
  assert (config.model.name, config.data.source) == ('tgn', 'event_log')
  assert config.model.count_terms

  (tmp_path / 'own.py').write_text(
    'from dynllm_jax import config\n'
    'def get_config(arg):\n'
    '  return config.default(arg or "mf")\n'
  )
  assert dynllm_jax.get_config('own.py').model.name == 'mf'
  with pytest.raises(dynllm_jax.InputError, match="'nothing': there is no"):
    dynllm_jax.get_config('nothing')


@pytest.mark.slow
def test_an_installation_has_all_that_a_command_needs(tmp_path):
  """Built as for a wheel, and run from a folder without the checkout."""
  source, installed = tmp_path / 'source', tmp_path / 'installed'
  source.mkdir()
  for name in ('dynllm_jax', 'configs', 'README.md', 'LICENSE'):
    (source / name).symlink_to(ROOT / name)
  for name in ('setup.py', 'setup.cfg', 'pyproject.toml'):
    shutil.copy(ROOT / name, source)
  subprocess.run(
    [
      *(sys.executable, 'setup.py', '--quiet'),
      *('build_py', '--build-lib', str(installed)),
      *('egg_info', '--egg-base', str(tmp_path)),
    ],
    cwd=source,
    check=True,
  )
  (entries,) = tmp_path.glob('*.egg-info/entry_points.txt')
  assert 'dynllm = dynllm_jax.main:console' in entries.read_text()

  # Templates and configs, each as many as in the checkout.
  for inside, folder, kind in (
    ('dynllm_jax/configs', 'configs', '*.py'),
    ('dynllm_jax/runs/pages', 'dynllm_jax/runs/pages', '*.jinja'),
  ):
    expected = {path.name for path in (ROOT / folder).glob(kind)}
    found = {path.name for path in (installed / inside).glob(kind)}
    assert found == expected

  done = subprocess.run(
    [sys.executable, '-m', 'dynllm_jax.main', '--config=demo:nothing'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(installed), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and "'nothing'" in done.stderr
