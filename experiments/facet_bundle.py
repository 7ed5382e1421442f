"""Prompts in a folder that travels, and the answers that come back in it.

<bundle>/prompts.json     the prompts, and which model they are for
<bundle>/answers.jsonl    an answer a line, in the order in which they came
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import time
from typing import Any
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from dynllm_jax.facets import llm_writing
from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.language_model import Model
from dynllm_jax.facets.language_model import Reply
from dynllm_jax.facets.language_model import Request
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writers import flax_writer
from dynllm_jax.storage import atomic
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

_PROMPTS, _ANSWERS = 'prompts.json', 'answers.jsonl'

Report = Callable[[str], None]


class Source(NamedTuple):
  """Where prompts come from and where their answers go.

  Attributes:
    fields: `config.facets.writer`, of the writer `flax`.
    log: the prepared log.
    profiles: the users and windows to write for.
    folder: where stores of answers are kept.
  """

  fields: ml_collections.ConfigDict
  log: EventLog
  profiles: Profiles
  folder: str

  def survey(
    self, report: Report
  ) -> tuple[Model, llm_writing.Store, llm_writing.Work]:
    """The model, the store of its answers, and the prompts."""
    model = flax_writer.make_model(self.fields, report)
    store = llm_writing.open_store(model, self.folder)
    work = llm_writing.survey(
      self.fields, model, self.log, self.profiles, store
    )
    report(llm_writing.describe_work(self.fields, work))
    return model, store, work


def sampled(profiles: Profiles, count: int, seed: int = 0) -> Profiles:
  """Some of the profiles, in their order.

  Args:
    profiles: all.
    count: how many, or all if there are fewer.
    seed: of the choice.
  """
  total = len(profiles)
  chosen = np.random.default_rng(seed).choice(
    total, min(count, total), replace=False
  )
  rows = np.sort(chosen)
  return dataclasses.replace(
    profiles,
    **{
      name: getattr(profiles, name)[rows]
      for name in ('users', 'closes', 'first', 'last')
    },
  )


def store_folder(data_config: ml_collections.ConfigDict) -> str:
  """Where the writers of a log keep their answers."""
  # The machine that writes has nothing that reads logs.
  from dynllm_jax.datasets import loading

  return os.path.join(loading.data_folder(data_config), 'written')


def prepare(bundle: pathlib.Path, source: Source, report: Report) -> None:
  """Puts the prompts that have no answer yet into a bundle.

  Args:
    bundle: the folder; it is made.
    source: of the prompts.
    report: takes lines of progress.
  """
  model, _, work = source.survey(report)
  left = work.unfinished(1)
  requests = [llm_writing.request_for(source.fields, work, i) for i in left]
  content = {
    'about': model.about,
    'fields': source.fields.to_dict(),
    'keys': [llm_writing.call_key(work, i, 0).hex() for i in left],
    'requests': [request._asdict() for request in requests],
  }
  bundle.mkdir(parents=True, exist_ok=True)
  atomic.write_atomically(bundle / _PROMPTS, json.dumps(content))

  sizes = sorted(request.tokens for request in requests) or [0]
  report(
    f'{len(requests):,} prompts of {sizes[0]} to {sizes[-1]} tokens, '
    f'{sizes[len(sizes) // 2]} in the middle'
  )


def answer(
  bundle: pathlib.Path,
  fields: ml_collections.ConfigDict,
  report: Report,
  seconds: float = 0.0,
) -> None:
  """Answers what a bundle asks, and was not answered by an earlier call.

  Args:
    bundle: the folder.
    fields: `config.facets.writer`: its model and `batch_size` count, the rest
      is replaced by what the bundle was made with.
    report: takes lines of progress.
    seconds: no batch begins after so many; 0 for no limit.

  Raises:
    InputError: if the model is another than the prompts are for.
  """
  began = time.monotonic()
  content = _read(bundle)
  here = {name: fields[name] for name in ('model', 'batch_size')}
  fields = fields.copy_and_resolve_references()
  fields.update({**content['fields'], **here})
  _check_same(bundle, content, flax_writer.make_model(fields, report))

  known = {line['key'] for line in _answers(bundle)}
  keys = {k: key for k, key in enumerate(content['keys']) if key not in known}
  requests = [Request(**{**content['requests'][k], 'prompt': k}) for k in keys]
  report(f'{len(requests):,} of {len(content["keys"]):,} prompts to answer')
  if not requests:
    return

  tokenizer = flax_writer.load_tokenizer(fields.model)
  generator = flax_writer.load_generator(fields, tokenizer)
  if isinstance(generator, Decoding):
    # One length is one program to compile.
    longest = max(request.tokens for request in requests)
    generator.buckets = (longest - generator.num_shared,)
  report(
    f'{jax.devices()[0].device_kind}: loaded after '
    f'{time.monotonic() - began:.1f} s'
  )

  groups = flax_writer.answers(fields, generator, tokenizer, requests)
  with open(bundle / _ANSWERS, 'ab') as file:
    file.truncate(len(_whole_lines(bundle)))
    for number, group in enumerate(groups):
      for request, reply in group:
        line = {'key': keys[request.prompt], **reply._asdict()}
        file.write(json.dumps(line, ensure_ascii=False).encode() + b'\n')
      file.flush()
      elapsed = time.monotonic() - began
      report(
        f'batch {number}: {len(group)} answers, {elapsed:.1f} s; '
        f'{generator.rates if isinstance(generator, Decoding) else ""}'
      )
      if seconds and elapsed > seconds:
        report('the time is up')
        break


def keep(bundle: pathlib.Path, source: Source, report: Report) -> None:
  """Puts a bundle's answers where the writer `flax` looks for them.

  Args:
    bundle: the folder.
    source: of the prompts.
    report: takes lines of progress.

  Raises:
    InputError: if the answers are another model's, or to other prompts.
  """
  content = _read(bundle)
  model, store, work = source.survey(report)
  _check_same(bundle, content, model)
  replies = {line.pop('key'): Reply(**line) for line in _answers(bundle)}
  known = {
    llm_writing.call_key(work, prompt, 0).hex()
    for prompt in range(len(work.rows))
  }
  if strange := replies.keys() - known:
    raise InputError(
      f'{bundle / _ANSWERS}: {len(strange)} answers are to prompts that this '
      'log does not have; allowed: the log and the fields of prepare'
    )
  store.append(
    [bytes.fromhex(key) for key in replies],
    [llm_writing.payload(reply) for reply in replies.values()],
  )
  source.survey(report)


def _read(bundle: pathlib.Path) -> dict[str, Any]:
  """What `prepare` has written."""
  path = bundle / _PROMPTS
  if not path.exists():
    raise InputError(f'{path}: missing; allowed: a folder that prepare made')
  content: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
  return content


def _answers(bundle: pathlib.Path) -> list[dict[str, Any]]:
  """The answers so far."""
  return [json.loads(line) for line in _whole_lines(bundle).splitlines()]


def _whole_lines(bundle: pathlib.Path) -> bytes:
  """The file of answers without a line that was cut short."""
  path = bundle / _ANSWERS
  content = path.read_bytes() if path.exists() else b''
  return content[: content.rfind(b'\n') + 1]


def _check_same(
  bundle: pathlib.Path, content: dict[str, Any], model: Model
) -> None:
  """Stops unless a model is the one that was asked, wherever its files are."""
  for name, value in content['about'].items():
    if name != 'model' and model.about.get(name) != value:
      raise InputError(
        f'{bundle}: was made for a model with {name} {value!r}, and here it is '
        f'{model.about.get(name)!r}; allowed: the same model and fields'
      )
