"""Which commit a report names."""

import subprocess

from dynllm_jax.runs import provenance


def test_changed_code_is_said_and_results_are_not_code(tmp_path, monkeypatch):
  def git(*args):
    who = ['-c', 'user.name=n', '-c', 'user.email=e']
    return subprocess.run(
      ['git', '-C', str(tmp_path), *who, *args],
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  code = tmp_path / 'dynllm_jax' / 'provenance.py'
  config = tmp_path / 'configs' / 'a.py'
  page = tmp_path / 'experiments' / 'results' / 'a.md'
  git('init')
  for path in (code, config, page):
    path.parent.mkdir(parents=True)
    path.write_text('first')
  git('add', '.')
  git('commit', '-m', 'first')
  monkeypatch.setattr(provenance, '__file__', str(code))

  head = git('rev-parse', 'HEAD')
  assert provenance.commit() == head
  page.write_text('second')
  assert provenance.commit() == head
  config.write_text('second')
  assert provenance.commit() == head + '-modified'
