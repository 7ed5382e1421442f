r"""What settings cost: their training and ranking in turn, on a study's logs.

    python -m experiments.cost --study=study.json --out=results/cost

The study is one of side_by_side.py, of systems that learn; its seeds are not
read. All settings of a log train a slice of batches and rank some validation
events in turn, round after round in one process, so that whatever else the
machine does falls on all of them alike.
"""

from collections.abc import Sequence
import json
import pathlib
import statistics
import time
from typing import Any

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.types import BoundSystem
from experiments import exit_status
from experiments import pages
from experiments import side_jobs
from experiments import slices
from experiments.side_jobs import Job

_STUDY = flags.DEFINE_string('study', None, 'JSON file of the settings.')
_OUT = flags.DEFINE_string('out', None, 'Path of the results, no ending.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/side_by_side', 'Folder of prepared logs.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'After one that is not counted.')
_BATCHES = flags.DEFINE_integer('batches', 8, 'Of a slice, and ranked.')

_MIB = 2.0**20


class Measured:
  """A setting on a log.

  Attributes:
    job: the setting.
    seconds_per_event: by what was done, of each round.
    program_mib: at the training program's peak.
  """

  def __init__(self, job: Job, folder: pathlib.Path):
    config = job.config(folder)
    self.job = job
    self._slices, run = slices.of_config(
      config, _BATCHES.value * config.train.batch_size
    )
    self._ranking = ranking.make_ranking(run.config, run.log)
    plan = run.rank_plans['validation']
    self._plan = plan._replace(batches=plan.batches[: _BATCHES.value])
    self.program_mib = self._slices.peak_bytes() / _MIB
    self.seconds_per_event: dict[str, list[float]] = {'train': [], 'rank': []}

  def round(self) -> None:
    """Trains on the next slice, and ranks the first validation events."""
    events, seconds = self._slices.step()
    self.seconds_per_event['train'].append(seconds / events)

    trainer, state = self._slices.trainer, self._slices.state
    bound = BoundSystem(trainer.system, state.params, self._slices.inputs)
    began = time.perf_counter()
    _, ranks = evaluate.replay(bound, state.memory, self._plan, self._ranking)
    seconds = time.perf_counter() - began
    self.seconds_per_event['rank'].append(seconds / len(ranks))


def measure(jobs: Sequence[Job], folder: pathlib.Path) -> list[dict[str, Any]]:
  """Records of a log's settings; ratios are to the first of them.

  Args:
    jobs: of one log.
    folder: of prepared logs.

  Raises:
    InputError: if a field is wrong.
  """
  measured = [Measured(job, folder) for job in jobs]
  for number in range(_ROUNDS.value + 1):
    for one in measured:
      one.round()
    progress.say(f'{jobs[0].log}: round {number} of {_ROUNDS.value}')

  records = []
  for one in measured:
    record: dict[str, Any] = {
      'log': one.job.log,
      'label': one.job.label,
      'system': one.job.system,
      'fields': one.job.fields,
      'program_mib': one.program_mib,
    }
    for name, seconds in one.seconds_per_event.items():
      first = measured[0].seconds_per_event[name][1:]
      record[name] = {
        'events_per_s': [1 / x for x in seconds[1:]],
        'times_as_fast': [x / y for x, y in zip(first, seconds[1:])],
      }
    records.append(record)
  return records


def page(records: Sequence[dict[str, Any]], made: dict[str, Any]) -> str:
  """The records as a page."""
  head = ['log', 'setting', 'training, events/s', 'times as fast']
  head += ['ranking, events/s', 'times as fast', 'training, MiB at peak']
  body = []
  for record in records:
    cells = [record['log'], record['label']]
    for name in ('train', 'rank'):
      rates, ratios = record[name].values()
      cells.append(f'{statistics.median(rates):,.0f}')
      spread = f'{min(ratios):.2f} to {max(ratios):.2f}'
      cells.append(f'{statistics.median(ratios):.2f} ({spread})')
    body.append([*cells, f'{record["program_mib"]:,.0f}'])
  return '\n'.join(
    [
      '# What settings cost',
      '',
      f'Medians of {made["rounds"]} rounds, in turn in one process; times as '
      "fast as a log's first setting, of each round, with the range. "
      f'{made["batches"]} batches of training, and of validation to rank. '
      f'Commit {pages.commit(made["commit"])}; {pages.named(made["machine"])}.',
      '',
      *pages.table(head, body),
      '',
    ]
  )


def main(argv: list[str]) -> int:
  """Reads the flags, measures, writes results and page."""
  del argv
  jax_settings.pin()

  def work() -> None:
    jobs = side_jobs.jobs_of(json.loads(pathlib.Path(_STUDY.value).read_text()))
    records = []
    for log in dict.fromkeys(job.log for job in jobs):
      of_log = [job for job in jobs if job.log == log]
      records += measure(of_log, pathlib.Path(_WORKDIR.value) / 'data')
    made = {
      'rounds': _ROUNDS.value,
      'batches': _BATCHES.value,
      'commit': provenance.commit(),
      'machine': provenance.machine(),
    }
    text = json.dumps({**made, 'records': records}, indent=1) + '\n'
    atomic.write_atomically(pathlib.Path(f'{_OUT.value}.json'), text)
    atomic.write_atomically(
      pathlib.Path(f'{_OUT.value}.md'), page(records, made)
    )

  return exit_status.exit_status(work)


if __name__ == '__main__':
  flags.mark_flags_as_required(['study', 'out'])
  app.run(main)
