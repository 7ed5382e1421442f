r"""What an accelerator does, in one run of ten minutes at most.

    python -m experiments.accelerator \
        [--events=LOG/interactions.csv --items=LOG/items.csv]

Four parts, of which `--parts` chooses:

- `speed`: systems train on slices of a simulated log of Tmall's size in turn,
  each in a process of its own, torch_geometric's TGN on the same device among
  them. `--also` adds a system with other XLA flags.
- `profile`: the kernels of one slice of each of these systems, by time.
- `runs`: the command trains one epoch twice on the device and once on this
  machine's processors: two runs must be equal bit for bit, and the ranks of the
  device are compared with the processors'.
- `kernel`: the ordered update's kernel beside its oracle
  (experiments/update_kernel.py); without a GPU interpreted, on few events.

Processes compile side by side, and are timed only once all have compiled.
Writes `experiments/results/accelerator.json` and `.md`.
"""

from collections.abc import Mapping
import contextlib
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np

from configs import tmall
from dynllm_jax import progress
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from experiments import accelerator_results as results
from experiments import exit_status
from experiments import machine_use
from experiments import slices as slices_lib
from experiments.timed_process import TimedProcess

_PARTS = flags.DEFINE_list(
  'parts', ['speed', 'profile', 'runs'], 'What is done.'
)
_SYSTEMS = flags.DEFINE_list(
  'systems', ['tgn', 'dynllm', 'dynllm+text+counts'], 'Timed systems.'
)
_ALSO = flags.DEFINE_multi_string(
  'also',
  [],
  'LABEL|SYSTEM|XLA_FLAGS: a further timed process, with more XLA flags.',
)
_PEER = flags.DEFINE_string(
  'peer_python',
  sys.executable,
  "Python that has torch_geometric; '' leaves the peer out.",
)
_RUNS = flags.DEFINE_list(
  'whole_runs', ['tgn', 'dynllm+text+counts'], 'Systems of whole runs.'
)
_EVENTS = flags.DEFINE_string('events', '', 'Log of the runs; else simulated.')
_ITEMS = flags.DEFINE_string('items', '', 'Its item texts.')
_SLICES = flags.DEFINE_integer('timed_slices', 7, 'Slices that are counted.')
_SLICE_EVENTS = flags.DEFINE_integer(
  'slice_events', 65_536, 'Events of a slice.'
)
_SIDE = flags.DEFINE_integer(
  'gemm_side', 16_384, 'Side of the matrices whose product finds the peak.'
)
_DATA = flags.DEFINE_string('data', '', 'Folder of prepared data.')
_WORKER = flags.DEFINE_string('worker', '', 'For this script: a system.')
_SIZE = flags.DEFINE_enum(
  'log_size', 'tmall', ['tmall', 'demo'], 'Size of the simulated log.'
)
_OUT = flags.DEFINE_string(
  'out',
  str(pathlib.Path(__file__).parent / 'results' / 'accelerator'),
  'Where .json and .md go.',
)

_NEIGHBORS = 10  # of TGN, ours and the peer's


def training_config(system: str, data: str) -> Any:
  """The configuration of a timed system."""
  config = tmall.get_config(system)
  config.data.size, config.data.dir = _SIZE.value, data
  config.eval.compare = ()
  config.train.batch_size = results.BATCH
  if system.partition('+')[0] == 'tgn':
    config.model.num_neighbors = _NEIGHBORS
  return config


# What a timed process does.


def work() -> None:
  """Compiles a system; then trains on a slice for each line that it reads.

  Writes a line of figures first, and for each line `{"events", "seconds"}`.
  The line `profile` instead traces a slice and writes its kernels.
  """
  jax_settings.pin()
  began = time.perf_counter()
  with contextlib.redirect_stdout(sys.stderr):
    slices, _ = slices_lib.of_config(
      training_config(_WORKER.value, _DATA.value), _SLICE_EVENTS.value
    )
    # The first slice of an epoch warms up; its program is the others'.
    slices.step()
  print(
    json.dumps(
      {
        'compile_s': slices.compile_s,
        'ready_s': time.perf_counter() - began,
        'program_peak_mb': slices.peak_bytes() / 1e6,
        'gb_per_step_xla': slices.bytes_per_step() / 1e9,
      }
    ),
    flush=True,
  )

  for line in sys.stdin:
    if line.strip() == 'profile':
      print(json.dumps(results.profile(slices)), flush=True)
      continue
    events, seconds = slices.step()
    print(
      json.dumps(
        {
          'events': events,
          'seconds': seconds,
          'device_peak_mb': device_peak_bytes() / 1e6,
        }
      ),
      flush=True,
    )


def device_peak_bytes() -> int:
  """The most memory of the device that this process held; 0 if not told."""
  stats = jax.devices()[0].memory_stats() or {}
  return int(stats.get('peak_bytes_in_use', 0))


# What the script does with them.


def speed(timed: list[results.Case], data: str) -> dict[str, Any]:
  """Times all cases in turn, and profiles them if that was asked for.

  Args:
    timed: of `cases`.
    data: folder of prepared data, which all processes share.

  Returns:
    By label: `failed`, or `events_per_s` (median), `all` rates, and the
    process's figures; `peer` and `gemm_peak_tflop_per_s` beside them.
  """
  started = {case.label: _start(case, data) for case in timed}
  processes: dict[str, TimedProcess] = {}
  found: dict[str, Any] = {}
  for label, process in started.items():
    found[label] = _ask(process)
    if 'failed' not in found[label]:
      processes[label] = process
      progress.say(f'{label}: compiled in {found[label]["compile_s"]:.0f} s')

  peer, events = _peer(data)
  rates: dict[str, list[float]] = {label: [] for label in processes}
  if peer is not None:
    rates['peer'] = []
  for _ in range(_SLICES.value + 1):
    for label, process in list(processes.items()):
      answer = _ask(process, 'go')
      if 'failed' in answer:
        found[label].update(answer)
        del processes[label], rates[label]
        continue
      found[label]['device_peak_mb'] = answer['device_peak_mb']
      rates[label].append(answer['events'] / answer['seconds'])
    if peer is not None:
      seconds = _ask(peer, 'go')
      if isinstance(seconds, dict):
        found['peer'], peer = seconds, None
        del rates['peer']
      else:
        rates['peer'].append(events / seconds)

  for label, values in rates.items():
    found.setdefault(label, {}).update(
      events_per_s=statistics.median(values[1:]), all=values[1:]
    )
    progress.say(f'{label}: {found[label]["events_per_s"]:,.0f} events/s')
  if peer is not None:
    found['peer']['about'] = peer.about
    peer.close()

  if 'profile' in _PARTS.value:
    for label, process in processes.items():
      found[label]['profile'] = _ask(process, 'profile')
  for process in processes.values():
    process.close()
  found['gemm_side'] = _SIDE.value
  found['gemm_peak_tflop_per_s'] = machine_use.gemm_peak(_SIDE.value) / 1e12
  return found


def _ask(process: TimedProcess, what: str = '') -> Any:
  """A process's next answer, or its first if nothing is asked.

  Flags that crash one process must not hide the figures of the others, so a
  process that has ended answers `{'failed': why}`; its own message is above.
  """
  try:
    return json.loads(process.step(what) if what else process.about)
  except (RuntimeError, OSError) as error:
    return {'failed': str(error)}


def _start(case: results.Case, data: str) -> TimedProcess:
  """A process that compiles a case."""
  environment = _environment()
  environment['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} {case.xla_flags}'.strip()
  )
  return TimedProcess(
    [
      sys.executable,
      '-m',
      'experiments.accelerator',
      f'--worker={case.system}',
      f'--data={data}',
      f'--log_size={_SIZE.value}',
      f'--slice_events={_SLICE_EVENTS.value}',
    ],
    environment,
  )


def _environment(**more: str) -> dict[str, str]:
  """The environment of a process that shares the device with others."""
  return {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **more}


def _peer(data: str) -> tuple[TimedProcess | None, int]:
  """torch_geometric's TGN on the same log and device; events of its slice."""
  if not _PEER.value:
    return None, 0
  log = prepared.prepare(training_config('tgn', data)).log
  path = os.path.join(data, 'peer_log.npz')
  np.savez(
    path,
    **{
      name: getattr(log, name)[: log.train_end]
      for name in ('users', 'items', 'times')
    },
  )
  # Slices of the peer are short: its rate does not depend on their length.
  events = (
    min(_SLICE_EVENTS.value, 16_384, log.train_end)
    // results.BATCH
    * results.BATCH
  )
  device = 'cuda' if jax.devices()[0].platform == 'gpu' else 'cpu'
  arguments = [path, results.BATCH, _NEIGHBORS, 128, events, device]
  script = pathlib.Path(__file__).parent / 'peer_tgn.py'
  line = [_PEER.value, str(script), *map(str, arguments)]
  return TimedProcess(line, _environment()), events


class Run(NamedTuple):
  """A run of the command in a process of its own."""

  workdir: pathlib.Path
  process: subprocess.Popen[bytes]


def start_run(
  system: str, folder: str, label: str, environment: Mapping[str, str]
) -> Run:
  """Starts one epoch of a system by the command.

  Args:
    system: its name.
    folder: of this script's runs.
    label: of the run.
    environment: of its process.
  """
  workdir = pathlib.Path(folder, f'{system}-{label}')
  line = [
    sys.executable,
    '-m',
    'dynllm_jax.main',
    f'--config=configs/event_log.py:{system}',
    f'--workdir={workdir}',
    f'--config.data.dir={folder}/data',
    '--config.train.num_epochs=1',
    '--config.eval.compare=()',
  ]
  if _EVENTS.value:
    line += [
      f'--config.data.events={_EVENTS.value}',
      f'--config.data.items={_ITEMS.value}',
      '--config.data.min_user_items=20',
    ]
  else:
    line[3] = f'--config=configs/demo.py:{system}'
  with open(f'{workdir}.log', 'wb') as log:
    process = subprocess.Popen(
      line, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
  return Run(workdir, process)


def finish_run(run: Run) -> None:
  """Waits for a run.

  Raises:
    RuntimeError: with the end of its output, if it failed.
  """
  if run.process.wait():
    text = pathlib.Path(f'{run.workdir}.log').read_text()[-2_000:]
    raise RuntimeError(f'{run.workdir.name} failed: {text}')


def whole_runs(folder: str) -> dict[str, Any]:
  """Runs every system twice on the device and once on the processors.

  Args:
    folder: for the runs.

  Returns:
    By system, `two_runs` and `device_and_cpu` (`compare_runs`), or `failed`.
  """
  cpu = _environment(JAX_PLATFORMS='cpu')
  first, beside = (
    {
      system: start_run(system, folder, label, environment)
      for system in _RUNS.value
    }
    for label, environment in (('first', _environment()), ('cpu', cpu))
  )
  found: dict[str, Any] = {}
  second = {}
  for system in _RUNS.value:
    try:
      finish_run(first[system])
    except RuntimeError as error:
      found[system] = {'failed': str(error)}
    else:
      # Its programs are compiled.
      second[system] = start_run(system, folder, 'second', _environment())

  for system, run in second.items():
    try:
      finish_run(run)
      finish_run(beside[system])
    except RuntimeError as error:
      found[system] = {'failed': str(error)}
      continue
    at = first[system].workdir
    found[system] = {
      'two_runs': results.compare_runs(at, run.workdir),
      'device_and_cpu': results.compare_runs(at, beside[system].workdir),
    }
  for run in beside.values():
    run.process.wait()  # of a system that failed on the device, too
  for system, of_one in found.items():
    progress.say(f'{system}: {json.dumps(of_one)}')
  return found


def main(argv: list[str]) -> int:
  """Does the parts that were asked for and writes the page."""
  if _WORKER.value:
    work()
    return 0
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for; the page is written after each part.

  Raises:
    InputError: if a flag is wrong.
  """
  for part in _PARTS.value:
    if part not in ('speed', 'profile', 'runs', 'kernel'):
      raise InputError(
        f'--parts: {part!r}; allowed: speed, profile, runs, kernel'
      )
  # Wrong flags are found before anything starts.
  timed = results.cases(_SYSTEMS.value, _ALSO.value)
  if 'runs' in _PARTS.value:
    try:
      importlib.import_module('dynllm_jax.main')
    except ImportError as error:
      raise InputError(
        f'--parts: runs needs what the command imports ({error}); allowed: '
        'without runs, or a whole installation'
      ) from error

  device = jax.devices()[0]
  about = {
    'commit': provenance.commit(),
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'machine': provenance.machine(),
    'log': f'simulated, size {_SIZE.value}, B {results.BATCH}',
    'medians': f'of {_SLICES.value} slices of {_SLICE_EVENTS.value:,} events',
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }
  found: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as folder:
    data = _DATA.value or f'{folder}/data'
    if 'kernel' in _PARTS.value:
      found['kernel'] = kernel(device)
      _write(about, found)
    if 'speed' in _PARTS.value:
      prepared.prepare(training_config('tgn', data))
      found['speed'] = speed(timed, data)
      _write(about, found)
    if 'runs' in _PARTS.value:
      found['runs'] = whole_runs(folder)
      _write(about, found)


def kernel(device: jax.Device) -> dict[str, Any]:
  """What experiments/update_kernel.py says, in a process of its own.

  Args:
    device: of this process.

  Returns:
    `said`, its lines; `failed`, the end of its errors, where it failed.
  """
  line = [sys.executable, '-m', 'experiments.update_kernel']
  if device.platform != 'gpu':
    line += ['--interpret', '--batches=512', '--runs=1']
  done = subprocess.run(
    line, check=False, capture_output=True, text=True, env=_environment()
  )
  found: dict[str, Any] = {'said': done.stdout.splitlines()[-20:]}
  if done.returncode:
    found['failed'] = done.stderr[-2_000:]
  return found


def _write(about: dict[str, Any], found: dict[str, Any]) -> None:
  """Writes what is known so far as `.json` and `.md`."""
  lines = [
    '# An accelerator',
    '',
    *(f'- {name}: {value}' for name, value in about.items()),
    '',
  ]
  if 'speed' in found:
    lines += results.speed_page(found['speed'])
  for system, run in found.get('runs', {}).items():
    lines += results.run_page(system, run)
  if 'kernel' in found:
    lines += ['## The kernel of the ordered update', '']
    lines += [f'- {line}' for line in found['kernel']['said']]
    if 'failed' in found['kernel']:
      lines += ['', 'It failed:', '', '```', found['kernel']['failed'], '```']

  atomic.write_atomically(
    pathlib.Path(_OUT.value + '.json'),
    json.dumps({**about, **found}, indent=1) + '\n',
  )
  atomic.write_atomically(
    pathlib.Path(_OUT.value + '.md'), '\n'.join(lines).rstrip('\n') + '\n'
  )


if __name__ == '__main__':
  app.run(main)
