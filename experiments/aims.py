"""Aims: figures that are wanted, whether they are met, and their page."""

import json
import pathlib
from typing import Any
from typing import NamedTuple

from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from experiments import pages


class Aim(NamedTuple):
  """What is wanted of a figure."""

  wanted: float
  at_most: bool = False  # else at least

  def met(self, value: float | None) -> str:
    """'yes', 'no', or 'not run' where there is no value."""
    if value is None:
      return 'not run'
    fine = value <= self.wanted if self.at_most else value >= self.wanted
    return 'yes' if fine else 'no'


# Of experiments/scaling.py; the page of experiments/throughput.py shows them,
# too. Costs are ratios of one size to another; memory is the peak over the
# bytes of the tables.
SCALING = {
  'cost_events': Aim(1.1, at_most=True),
  'cost_nodes': Aim(1.1, at_most=True),
  'cost_memory': Aim(1.3, at_most=True),
  'cost_ranking': Aim(1.1, at_most=True),
  'cost_ranking_memory': Aim(1.3, at_most=True),
}

Found = dict[str, Any]  # `value`, None where not run, and other figures


def check_asked(
  flag: str, asked: list[str], known: list[str], out: str, default_out: str
) -> None:
  """Stops if a flag names nothing, or if a part would replace a whole page.

  Args:
    flag: whose values are beginnings of names.
    asked: its values; no values stand for all names.
    known: all names.
    out: where the page goes.
    default_out: where a page of all names goes by default.

  Raises:
    InputError: saying what is allowed.
  """
  for value in asked:
    if not any(name.startswith(value) for name in known):
      raise InputError(
        f'--{flag}: {value!r}; allowed: beginnings of {", ".join(known)}'
      )
  whole = not asked or all(any(map(name.startswith, asked)) for name in known)
  if not whole and out == default_out:
    raise InputError(
      f'--{flag}: {",".join(asked)!r} is a part of what is on the page '
      f'{out}.md; allowed: all, or another page (--out)'
    )


def line(name: str, aim: Aim, found: Found) -> str:
  """`aim=<name> value=<figure> wanted=<figure> met=<yes|no|not run>`."""
  value = found.get('value')
  shown = '-' if value is None else f'{value:.4g}'
  return f'aim={name} value={shown} wanted={aim.wanted:g} met={aim.met(value)}'


def write(
  path: str,
  title: str,
  *,
  about: dict[str, Any],
  aims: dict[str, Aim],
  results: dict[str, Found],
  more: list[str],
  **data: Any,
) -> None:
  """Writes `<path>.json` and the page `<path>.md`.

  Args:
    path: without suffix.
    title: of the page.
    about: how it was measured, in words by name.
    aims: by name; those without a result are left out.
    results: by name of the aim.
    more: further lines of the page.
    **data: further fields of the .json, not shown on the page.
  """
  about = {
    'commit': provenance.commit(),
    'machine': provenance.machine(),
    **about,
  }
  judged = {
    name: {
      'wanted': aim.wanted,
      'at_most': aim.at_most,
      'met': aim.met(results[name].get('value')),
      **results[name],
    }
    for name, aim in aims.items()
    if name in results
  }

  body = [
    [
      name,
      '-' if r.get('value') is None else f'{r["value"]:.4g}',
      f'{"at most" if r["at_most"] else "at least"} {r["wanted"]:g}',
      r['met'],
      _figures(r),
    ]
    for name, r in judged.items()
  ]
  page = [
    f'# {title}',
    '',
    *(f'- {k}: {_shown(v)}' for k, v in about.items()),
    '',
    *pages.table(['aim', 'value', 'wanted', 'met', 'figures'], body),
    '',
    *more,
  ]

  atomic.write_atomically(
    pathlib.Path(path + '.json'),
    json.dumps({**about, 'aims': judged, **data}, indent=2) + '\n',
  )
  atomic.write_atomically(
    pathlib.Path(path + '.md'), '\n'.join(page).rstrip('\n') + '\n'
  )


def _figures(found: Found) -> str:
  """The figures that explain a value, without those in lists and dicts."""
  skipped = ('value', 'wanted', 'at_most', 'met')
  return ', '.join(
    f'{name}: {_shown(value)}'
    for name, value in found.items()
    if name not in skipped and not isinstance(value, (dict, list))
  )


def _shown(value: Any) -> str:
  """A value in words, numbers in few digits."""
  if isinstance(value, dict):
    return ', '.join(f'{k} {_shown(v)}' for k, v in value.items())
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 1_000 else f'{value:.4g}'
  return f'{value:,}' if type(value) is int else str(value)
