r"""Many short trainings side by side, on one machine and by a deadline.

    python -m experiments.side_by_side --study=study.json --out=results/first \
        --workdir=runs/side_by_side --jobs=16 --seconds=220

A study asks which of some settings is better, so it needs every seed of each,
on several logs. Most of a short training is spent on compiling, which the seeds
of a setting share: a process takes one setting on one log, prepares and
compiles once, and trains its seeds one after the other. All processes share the
accelerator, and a cache of compiled programs. What is computed is what the
command computes; an epoch is chosen by validation Recall@10, as there.

The study is a JSON object:

    {"logs": {"beauty": {"events": "b/interactions.csv", "items": "b/items.csv",
                         "fields": {"data.min_user_items": 5}}},
     "config": "event_log",
     "fields": {"train.num_epochs": 3},
     "settings": [{"label": "default", "system": "dynllm+text+counts",
                   "fields": {}, "seeds": [0, 1, 2], "logs": ["beauty"]}],
     "pairs": [["default", "blend"]]}

`config` is a file of configs/; `fields` of the log, of the study and of the
setting override it in this order; `logs` of a setting are all if they are left
out. With `"platform": "cpu"` a setting leaves the accelerator to the others. A
system that counts, or learns little (SPEC 6), is a floor of the page.

Every finished run is kept at once, so that a study that was stopped, by its
deadline or otherwise, goes on with the same command. At the end `--out` has
`results.json`, `ranks.npz` (ranks of single events, doubled, as
rank_arrays.py has them) and `page.md`; finished runs that are there already are
not run again.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

from dynllm_jax import progress
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from experiments import exit_status
from experiments import side_by_side_page
from experiments import side_jobs
from experiments.side_jobs import Job

_STUDY = flags.DEFINE_string('study', None, 'JSON file of the settings.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the results.')
_WORKDIR = flags.DEFINE_string(
  'workdir',
  'runs/side_by_side',
  'Folder of prepared logs, compiled programs and logs of the processes.',
)
_JOBS = flags.DEFINE_integer('jobs', 2, 'Processes at once.')
_SECONDS = flags.DEFINE_float(
  'seconds', 0, 'After which no process goes on; 0 for no limit.'
)
_ONE = flags.DEFINE_integer('one', -1, 'For this script: a job to do.')

_GRACE_S = 3.0  # between a process's two signals


def run_all(
  jobs: Sequence[Job],
  workdir: pathlib.Path,
  done: set[str],
  end: float,
) -> None:
  """Does all jobs, `--jobs` at a time, until the deadline.

  Args:
    jobs: the jobs; the first ones are started first.
    workdir: of the study.
    done: keys of runs that need not be made.
    end: the deadline, of `time.monotonic`.

  Raises:
    InputError: at the end, naming the processes that failed.
  """
  waiting = [
    number
    for number, job in enumerate(jobs)
    if any(job.key(seed) not in done for seed in job.seeds)
  ]
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(workdir.absolute() / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    # Processes that share an accelerator must not reserve most of it.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    **os.environ,
  }

  running: dict[int, subprocess.Popen[bytes]] = {}
  failed = []
  try:
    while (waiting or running) and time.monotonic() < end:
      while waiting and len(running) < _JOBS.value:
        number = waiting.pop(0)
        line = [sys.executable, '-m', 'experiments.side_by_side']
        line += [f'--study={_STUDY.value}', f'--out={_OUT.value}']
        line += [f'--workdir={workdir}', f'--one={number}']
        platform = jobs[number].platform
        own = {'JAX_PLATFORMS': platform} if platform else {}
        running[number] = _start(line, workdir, number, environment | own)
      time.sleep(0.2)
      for number in [n for n, p in running.items() if p.poll() is not None]:
        status, job = running.pop(number).returncode, jobs[number]
        progress.say(f'{job.log}, {job.label}: ended with {status}')
        if status:
          failed.append(f'{job.log}, {job.label}: {_tail(workdir, number)}')
  finally:
    _stop(list(running.values()))
  if running or waiting:
    progress.say(
      f'stopped by the deadline: {len(running)} unfinished, {len(waiting)} '
      'not begun; the same command goes on'
    )
  if failed:
    raise InputError('; '.join(failed))


def _start(
  line: list[str],
  workdir: pathlib.Path,
  name: int | str,
  environment: dict[str, str],
) -> subprocess.Popen[bytes]:
  """Starts a process whose output goes to `<name>.log`."""
  with open(workdir / f'{name}.log', 'wb') as log:
    return subprocess.Popen(
      line, env=environment, stdout=log, stderr=subprocess.STDOUT
    )


def _tail(workdir: pathlib.Path, name: int | str) -> str:
  """The end of a process's output."""
  text = (workdir / f'{name}.log').read_text(errors='replace')
  return ' '.join(text.strip().splitlines()[-3:])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
  """Ends processes, those that do not listen too."""
  for process in processes:
    process.terminate()
  end = time.monotonic() + _GRACE_S
  for process in processes:
    try:
      process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def prepare_logs(jobs: Sequence[Job], workdir: pathlib.Path) -> None:
  """Prepares every log, with its facets and texts, once.

  Args:
    jobs: the jobs.
    workdir: of the study.

  Raises:
    InputError: if a log or a field is wrong.
  """
  lines: dict[str, list[str]] = {}
  for job in jobs:
    job.config(workdir / 'data')  # wrong fields are found before anything runs
    fields = {
      name: value
      for name, value in job.fields.items()
      if name.startswith(('data.', 'facets.'))
    }
    line = [sys.executable, '-m', 'dynllm_jax.main', '--mode=facets']
    line += [f'--config=configs/{job.data.name}.py:{job.system}']
    line += job.data.flags() + [f'--config.{k}={v}' for k, v in fields.items()]
    line += [f'--config.data.dir={workdir / "data"}']
    lines.setdefault(json.dumps([job.log, sorted(fields.items())]), line)

  # Nothing of this needs an accelerator.
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  processes = {
    f'log-{number}': _start(line, workdir, f'log-{number}', environment)
    for number, line in enumerate(lines.values())
  }
  for name, process in processes.items():
    if process.wait():
      raise InputError(f'--study: {_tail(workdir, name)}')


# ------------------------------------------------------------------ results


def finished(
  out: pathlib.Path, workdir: pathlib.Path
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """The finished runs of `--out` and those that processes have written since.

  Returns:
    Their records; and their ranks, by `<key>.<split>`, with the users of each
    log's later splits, by `<log>.users`.
  """
  records: dict[str, dict[str, Any]] = {}
  arrays: dict[str, np.ndarray] = {}
  if (out / 'results.json').exists():
    stored = json.loads((out / 'results.json').read_text())
    records = {record['key']: record for record in stored}
    with np.load(out / 'ranks.npz') as kept:
      arrays = dict(kept)

  for path in sorted((workdir / 'runs').glob('*.json')):
    record = json.loads(path.read_text())
    records[record['key']] = record
    with np.load(path.with_suffix('.npz')) as kept:
      for name, values in kept.items():
        of = record['log'] if name == 'users' else record['key']
        arrays[f'{of}.{name}'] = values
  return list(records.values()), arrays


def write(
  out: pathlib.Path,
  records: list[dict[str, Any]],
  arrays: dict[str, np.ndarray],
  pairs: Sequence[Sequence[str]],
) -> None:
  """Writes results, ranks and page.

  Args:
    out: folder of the results.
    records: of `finished`.
    arrays: of `finished`.
    pairs: labels of settings that are tested against each other.
  """
  out.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(out / 'ranks.npz') as file:
    np.savez_compressed(file, **arrays)
  atomic.write_atomically(
    out / 'results.json', json.dumps(records, indent=1) + '\n'
  )
  page = side_by_side_page.page(records, arrays, pairs)
  atomic.write_atomically(out / 'page.md', '\n'.join(page))


def main(argv: list[str]) -> int:
  """Reads the flags, makes what is missing, writes the page."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if the study is wrong, or processes have failed.
  """
  end = time.monotonic() + (_SECONDS.value or float('inf'))
  out, workdir = pathlib.Path(_OUT.value), pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  try:
    study = json.loads(pathlib.Path(_STUDY.value).read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f'--study: {_STUDY.value!r}: {error}; allowed: a JSON file'
    ) from error
  jobs = side_jobs.jobs_of(study)
  done = {record['key'] for record in finished(out, workdir)[0]}
  if _ONE.value >= 0:
    side_jobs.work(jobs[_ONE.value], workdir, done)
    return

  try:
    prepare_logs(jobs, workdir)
    run_all(jobs, workdir, done, end)
  finally:
    records, arrays = finished(out, workdir)
    if records:
      write(out, records, arrays, study.get('pairs', ()))
      progress.say(f'wrote {out}: {len(records)} runs')


if __name__ == '__main__':
  flags.mark_flags_as_required(['study', 'out'])
  app.run(main)
