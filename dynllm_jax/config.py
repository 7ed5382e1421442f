"""The configuration: all fields with their defaults, and what config files use.

A config file says only what differs from `default()`:

    def get_config(arg=''):
      config = default(arg)
      config.data.source = 'online_retail'
      return config

The sections below are the reference of the fields: a field's comment is what a
user can read about it. Those of `config.model` are in the system's own file.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import json
import operator
import types
from typing import Any

import ml_collections

from dynllm_jax import checks
from dynllm_jax import plugins
from dynllm_jax.checks import Rule
from dynllm_jax.types import InputError

# Terms of the score that a variant of a temporal system switches on; several
# may be named, as in `tgn+text+counts`.
VARIANTS = {
  'walk': ('copy_term', 'walk_term'),  # SPEC 3.11
  'text': ('copy_term', 'walk_term', 'text_term'),  # layers/text_term.py
  'counts': ('count_terms',),  # SPEC 3.12
}


# What --mode=tune tries unless it is told otherwise: of each kind what was best
# on some log (experiments/results), what needs no training first.
TUNED = (
  'recent_popularity',
  'repeat',
  'transitions',
  'itemknn',
  'blend',
  'mf',
  'sasrec',
  'tgn+walk',
  'dynllm+walk',
  'dynllm+text',
  'dynllm+counts',
  'dynllm+text+counts',
)


# -------------------------------------------- the fields and their defaults


def _data() -> dict[str, Any]:
  """`config.data`: which log is read, and how it is prepared (SPEC 2)."""
  return {
    # Where the log comes from: a file name in dynllm_jax/datasets/sources, or
    # the full name of a module of your own.
    'source': 'event_log',
    # The event log: a file, a folder of files, or a pattern such as
    # 'logs/2024-*.csv'. Text with delimiters, JSON lines, Parquet, Feather or
    # Excel, by the file's name; text also gzipped; a file also in a bucket
    # (gs://).
    'events': '',
    # The item table, likewise; '' for none but one that is published with the
    # log and lies beside it (RecBole, MovieLens), 'none' not even for that.
    'items': '',
    # Events that were observed live and follow the log: a file that
    # --init_from writes; '' for none.
    'journal': '',
    # Columns of the event log, by name or by position from 0. Digits are always
    # a position.
    'user_column': 'user_id',
    'item_column': 'item_id',
    'time_column': 'timestamp',
    # Columns of the item table, which must be there; '' looks for a usual name,
    # such as title, name, category, genres or brand.
    'title_column': '',
    'category_column': '',
    'brand_column': '',
    # The item table's column of item ids; '' where its name is that of
    # item_column.
    'items_item_column': '',
    # Whether the first row has the columns' names: in the log, and in the item
    # table (None: as in the log).
    'header': True,
    'items_header': ml_collections.config_dict.placeholder(bool),
    # What separates the columns of a text file, such as ';' or '::'. '' looks
    # for it in the first line: a tab in .tsv; in .csv the first of comma,
    # semicolon, tab and bar that is there, elsewhere a tab before the others.
    'delimiter': '',
    # Whether double quotes enclose values of a text file: 'double', where one
    # of a value is written twice; 'backslash', where it stands behind one;
    # 'none'; or 'auto', which is 'double' but refuses a value that spans lines
    # where it looks like rows that an open quote has swallowed, and one that a
    # quote behind a backslash would cut.
    'quoting': 'auto',
    # The encoding of text files.
    'encoding': 'utf8',
    # Which rows are kept, as {'column': 'value'}, {'column': [values]} or
    # {'column': '>=4'} (also >, <, <=, !=); None for all.
    'where': ml_collections.config_dict.placeholder(object),
    # The unit of the times: s, ms, us, ns (since 1970), iso, or auto, which
    # detects it.
    'time_unit': 'auto',
    # What happens at a row that cannot be read: 'error' stops the run, 'drop'
    # leaves the row out.
    'bad_rows': 'error',
    # What happens where the item table has fewer than half of the log's items:
    # 'error' stops the run, 'warn' goes on, with items that have no text.
    'items_missing': 'error',
    # The share of users that is kept, drawn at random by the seed.
    'sample_users': 1.0,
    'sample_seed': 0,
    # The core that is kept: every user has at least so many distinct items,
    # every item at least so many distinct users.
    'min_user_items': 20,
    'min_item_users': 5,
    # For source 'simulated': the log that is made, tmall, alibaba or demo.
    'size': 'tmall',
    'simulation_seed': 0,
    # Where prepared logs, facets and embeddings are kept; '' is
    # $XDG_CACHE_HOME/dynllm_jax or ~/.cache/dynllm_jax.
    'dir': '',
  }


def _facets() -> dict[str, Any]:
  """`config.facets`: who writes the facets and who embeds texts (SPEC 3.6)."""
  return {
    # Days of a window; a user has facets for each window with purchases.
    'window_days': 30.0,
    # GiB of the device that embeddings of facets may take. If they need more,
    # they stay on the host, and go to the device as a chunk of batches needs
    # them.
    'device_gib': 4.0,
    'writer': _writer(),
    'encoder': _encoder(),
  }


def _writer() -> dict[str, Any]:
  """`config.facets.writer`: LLM_G, purchases to texts."""
  return {
    # rules, flax, openai: a file of dynllm_jax/facets/writers; or the full name
    # of a module of your own.
    'name': 'rules',
    # The fields from here to tokens_per_s are those of language models (flax,
    # openai). The model: for flax a directory or a name on the Hugging Face
    # Hub, for openai the name by which the endpoint knows it.
    'model': '',
    # Tokens of a prompt (the oldest purchases give way) and of an answer.
    'max_input_tokens': 1024,
    'max_output_tokens': 256,
    'temperature': 0.0,  # 0 is greedy
    'seed': 0,  # of sampling
    # How often a prompt is asked until its answer can be read.
    'max_attempts': 3,
    # free: the model writes the JSON object of the four texts. guided: the form
    # is given, and the model fills in the texts: no answer is malformed.
    'form': 'free',
    # 1: the purchases are listed. 2, for small models: they are counted by
    # category and brand, the newest are named, and two examples show the way.
    'prompt_version': 1,
    # The share of prompts that may end without facets; more stop the run.
    'max_failure_rate': 0.05,
    # For --dry_run: tokens a second, in and out together; 0 takes the rate that
    # was last measured.
    'tokens_per_s': 0.0,
    # For flax: the type in which the model computes, float32 or bfloat16.
    'dtype': 'float32',
    # For flax: full (of that type), or int8 for a decoder of this package:
    # rounded to eight bits, half the memory of bfloat16.
    'weights': 'full',
    # For flax: prompts that are answered together, and devices that one copy of
    # the model is divided over.
    'batch_size': 16,
    'devices_per_copy': 1,
    # For openai, whose key is read from OPENAI_API_KEY: the endpoint's address,
    # such as http://host:8000/v1; '' for OpenAI itself.
    'base_url': '',
    'concurrency': 8,  # calls at once
    'timeout_s': 120.0,  # that an answer may take
    'num_retries': 6,  # of a call that got no answer
    # What one run may spend, 0 for no limit: calls, and tokens in and out.
    'max_calls': 0,
    'max_tokens': 0,
    # For --dry_run: prices of a million tokens.
    'price_per_million_input': 0.0,
    'price_per_million_output': 0.0,
  }


def _encoder() -> dict[str, Any]:
  """`config.facets.encoder`: LLM_E, texts to embeddings."""
  return {
    # hashing, flax, openai: a file of dynllm_jax/text/encoders; or the full
    # name of a module of your own.
    'name': 'hashing',
    # For hashing: the width of its embeddings.
    'dim': 384,
    # For flax a directory or a name on the Hugging Face Hub, for openai the
    # name by which the endpoint knows the model.
    'model': '',
    # For flax: which hidden states become the vector (mean, cls, last) and
    # whether it gets length 1 (yes, no); auto is as the model's directory says.
    'pooling': 'auto',
    'normalize': 'auto',
    # For flax: tokens that are read of a text, 0 for the model's own limit, and
    # tokens of a batch with its padding, 0 for what suits the device.
    'max_length': 0,
    'batch_tokens': 0,
    # For openai, as for the writer.
    'base_url': '',
    'concurrency': 8,
    'timeout_s': 60.0,
    'num_retries': 6,
    'max_calls': 0,
    'max_tokens': 0,
  }


def _train() -> dict[str, Any]:
  """`config.train`: objective, optimizer and early stopping (SPEC 3.9, 4)."""
  return {
    # At most; 0 for a few, more where the log is so short that these would have
    # less than 140 steps.
    'num_epochs': 200,
    # Events of a batch; sequences, for a system that is fed sequences.
    'batch_size': 2048,
    # Adam's rate: it rises over the warm-up and falls as a cosine to the given
    # share of itself after the last epoch.
    'learning_rate': 1e-3,
    'warmup_steps': 0,
    'final_learning_rate': 1.0,
    # Norms that gradients are clipped to; the gradients of the time encoding's
    # frequencies have a limit of their own.
    'max_gradient_norm': 1.0,
    'max_time_gradient_norm': 0.1,
    'loss': 'bpr',  # bpr, margin, softmax, bce
    'margin': 1.0,  # of the loss 'margin'
    # q of the loss 'softmax': above 0, what ranks low weighs less (SPEC 3.9).
    'softmax_power': 0.0,
    # Negatives of an event, which the batch shares for softmax; and how they
    # are drawn: uniform, sold (among items sold by then), popularity, or, for
    # softmax, batch: uniform, beside the batch's own items, for all the others.
    'num_negatives': 1,
    'negatives': 'uniform',
    'regularization': 0.0,  # lambda of SPEC 3.9
    # Epochs without a better recall@10 on validation that end training.
    'patience': 10,
    # Batches of one compiled program; progress is shown after each.
    'chunk': 16,
    # How exact a step's matrix products are (SPEC 4.6): float32, tf32 (a GPU),
    # bf16 (a GPU or TPU), or the device's own, default.
    'precision': 'default',
  }


def _eval() -> dict[str, Any]:
  """`config.eval`: how events are ranked (SPEC 5)."""
  return {
    # Events that share one state of the system.
    'batch_size': 256,
    # Cut-offs of recall and NDCG.
    'ks': (10, 20, 30),
    # What an event's item is ranked among: 'all' items, or the 'future' ones,
    # which occur in the two last splits.
    'candidates': 'all',
    # Whether items that the user took before are left out: True, False, or
    # 'auto', where nobody takes an item twice in training.
    'filter_seen': ml_collections.FieldReference('auto', field_type=object),
    # Items that are scored at once.
    'block_size': 65_536,
    # Validation events that are ranked between epochs, a fixed sample; 0 for
    # all. The report after training ranks all.
    'validation_events': 0,
    # Whether a run ends with test and report; False is for tuning.
    'test': True,
    # Systems that count, with a few learned weights at most, which are ranked
    # beside this one.
    'compare': (
      'popularity',
      'recent_popularity',
      'repeat',
      'transitions',
      'itemknn',
      'blend',
    ),
  }


def _mesh() -> dict[str, Any]:
  """`config.mesh`: devices and processes."""
  return {
    # Devices that share a batch (0: all there are), and devices that share the
    # node tables.
    'data': 0,
    'nodes': 1,
    # Seconds that processes wait for each other at the start.
    'start_timeout_s': 300.0,
  }


# Who makes which section. A comment above a field, or behind it, is what users
# read of it (runs/config_reference.py).
SECTIONS: dict[str, Callable[..., Any]] = {
  'data': _data,
  'facets': _facets,
  'facets.writer': _writer,
  'facets.encoder': _encoder,
  'train': _train,
  'eval': _eval,
  'mesh': _mesh,
}


def default(arg: str = '') -> ml_collections.ConfigDict:
  """All fields with their defaults.

  Args:
    arg: the config argument, `<system>`, `<system>+<variant>` or with several
      variants, empty for `dynllm`; a variant switches on terms of the score
      (VARIANTS).

  Returns:
    A locked config; `config.model` holds the fields of the chosen system.

  Raises:
    InputError: if there is no such system, or it has no such variant.
  """
  name, *chosen = (arg or 'dynllm').split('+')
  config = ml_collections.ConfigDict(
    {
      # The seed of parameters, negatives and dropout.
      'seed': 0,
      'data': DataConfig(_data()),
      'facets': _facets(),
      'model': {},
      'train': _train(),
      'eval': _eval(),
      'mesh': _mesh(),
    }
  )

  module = plugins.load(plugins.SYSTEMS, name, 'config argument')
  config.model = module.default_config()
  config.model.name = name

  variants = variants_of(config.model)
  for variant in chosen:
    if variant not in variants:
      raise InputError(
        f'config argument {arg!r}: system {name!r} has no variant '
        f'{variant!r}; allowed: {", ".join(variants) or "none"}'
      )
    config.model.update(dict.fromkeys(VARIANTS[variant], True))
  config.train.update(own_train(config.model))
  config.lock()
  return config


def restored(fields: dict[str, Any]) -> ml_collections.ConfigDict:
  """The configuration of a run, from the content of its `config.json`.

  Fields that have been added since have their defaults.

  Args:
    fields: of `config.to_dict()`, as JSON gives them back: lists for tuples.

  Returns:
    A locked config.

  Raises:
    InputError: if there is no such system.
  """

  def fill(section: ml_collections.ConfigDict, values: dict[str, Any]) -> None:
    for name, value in values.items():
      if isinstance(section.get(name), ml_collections.ConfigDict):
        fill(section[name], value)
      else:
        section[name] = tuple(value) if isinstance(value, list) else value

  config = default(fields['model']['name'])
  with config.unlocked(), config.ignore_type():
    fill(config, fields)
  config.lock()
  return config


SECTIONS[''] = default


class DataConfig(ml_collections.ConfigDict):
  """`config.data`, in which `items` is a field and not the mapping's method.

  ml_collections itself calls `config.data.items()`, so the field's value can
  be called like the method.
  """

  @property
  def items(self) -> str:
    path = _CallablePath(self['items'])
    path.pairs = super().items()
    return path

  def __setattr__(self, name: str, value: Any) -> None:
    if name == 'items':
      self['items'] = value
    else:
      super().__setattr__(name, value)

  def __setitem__(self, name: str, value: Any) -> None:
    # A column may be given by its position; the field holds a string.
    if name.endswith('_column') and isinstance(value, int):
      value = str(value)
    super().__setitem__(name, value)


class _CallablePath(str):
  """A path that, called like a mapping's `items`, returns the pairs."""

  pairs: Iterable[tuple[str, Any]] = ()

  def __call__(self) -> Iterable[tuple[str, Any]]:
    return self.pairs


# ------------------------------------------------------ what config files call


def set_known(model: ml_collections.ConfigDict, **fields: Any) -> None:
  """Sets those fields that the chosen system has.

  Config files serve every system, and a count-based one has none of a
  network's fields.

  Args:
    model: `config.model`.
    **fields: values by name, `part__name` for `model.part.name`.
  """
  for field, value in fields.items():
    *part, name = field.split('__')
    section = model.get(part[0], {}) if part else model
    if name in section:
      section[name] = value


def set_train(config: ml_collections.ConfigDict, **fields: Any) -> None:
  """Sets those fields of `config.train` that the system leaves open.

  A system's file may hold a function `default_train()` that returns fields of
  `config.train` which its paper prescribes (a loss, negatives, a batch of
  sequences), and count terms want a softmax. These take precedence over a
  config file's choice for a log, and the command line over them.

  Args:
    config: the whole config.
    **fields: values by name.
  """
  own = own_train(config.model)
  config.train.update(
    {name: value for name, value in fields.items() if name not in own}
  )


def own_train(model: ml_collections.ConfigDict) -> dict[str, Any]:
  """Fields of `config.train` that a system's paper, or one of its terms, needs.

  One negative an event says too little of the few weights of count terms, and
  with more than a few epochs networks beside them rank later events worse. Of a
  schedule so short all epochs are run. In a plain softmax what nobody could
  have ranked high has most to say.

  Args:
    model: `config.model`.
  """
  module = system_module(model.name)
  own = module.default_train() if hasattr(module, 'default_train') else {}
  if model.get('count_terms', False):
    beside_counts = {
      'loss': 'softmax',
      'num_negatives': 512,
      'negatives': 'batch',
      'softmax_power': 0.3,
      'num_epochs': 0,
      'patience': 30,
    }
    own = beside_counts | own
  return own


# ----------------------------------------------------------------- the systems


def system_names() -> list[str]:
  """Names of all systems: files of dynllm_jax/models, and installed ones."""
  return plugins.names(plugins.SYSTEMS)


def system_module(name: str) -> types.ModuleType:
  """The module of a system (plugins.py).

  Raises:
    InputError: if there is no such system.
  """
  return plugins.load(plugins.SYSTEMS, name, 'config.model.name')


def variants_of(model: ml_collections.ConfigDict) -> list[str]:
  """The variants whose terms a system's `config.model` has."""
  return [name for name, terms in VARIANTS.items() if set(terms) <= set(model)]


# ---------------------------------------------------------------------- checks


def check_system(config: ml_collections.ConfigDict) -> None:
  """Stops where `model.name` was overridden, which changes no other field.

  Raises:
    InputError: if `config.model` holds the fields of another system.
  """
  name = config.model.get('name')
  fields = {'name', *system_module(name).default_config()}
  if other := sorted(fields ^ set(config.model)):
    found = 'has no' if other[0] in fields else 'has the'
    raise InputError(
      f'config.model.name: {name!r} does not fit the other fields of '
      f'config.model, which {found} {other[0]!r}; a system is chosen as '
      f'--config=FILE:{name}'
    )


def check_values(config: ml_collections.ConfigDict) -> None:
  """Stops where a field is missing, or has no value but needs one.

  What values are allowed is checked by the modules that read them.

  Raises:
    InputError: naming the field.
  """
  # The fields that there should be: those of the chosen system in `model`.
  usual = default().to_dict()
  if isinstance(config.get('model'), ml_collections.ConfigDict):
    check_system(config)
    usual['model'] = system_module(config.model.name).default_config()

  lines = []
  for name, value in flatten(usual):
    try:
      found = operator.attrgetter(name)(config)
    except AttributeError:
      found = None
    if found is None and value is not None:
      lines.append(
        f'config.{name}: it has no value; allowed: one like {value!r}'
      )
  checks.report(lines)

  compare = Rule(
    'eval.compare',
    'a tuple of names of systems',
    lambda names: (
      isinstance(names, (tuple, list))
      and all(isinstance(name, str) for name in names)
    ),
  )
  seed = Rule(
    'seed',
    'a whole number from 0 to 2**63 - 1',
    lambda value: isinstance(value, int) and 0 <= value < 2**63,
  )
  checks.check('config', config, [compare, seed])


# ------------------------------------------------------------ fields as a list

# Where a host keeps the data. Hosts may differ in it, since the prepared log's
# fingerprint tells whether they have the same data.
_PLACES = ('data.events', 'data.items', 'data.journal', 'data.dir')


def leaves(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that all processes share, as JSON values by full name."""
  fields = json.loads(json.dumps(config.to_dict()))
  return {
    f'config.{name}': value
    for name, value in flatten(fields)
    if name not in _PLACES
  }


def flatten(tree: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Each value in nested dicts, with its full name, `a.b`."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from flatten(value, f'{path}.{key}' if path else key)
  else:
    yield path, tree
