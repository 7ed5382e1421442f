"""The files of a language model: a local directory, or one from the Hub.

Nothing here loads a model: on a machine without transformers a finished store
of its results is still found, and not confused with another model's.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import pathlib
from typing import Any

from dynllm_jax import checks
from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import InputError

# The first kind that is there is read.
WEIGHTS = ('model*.safetensors', 'flax_model*.msgpack')
# The other files on which results depend, those of sentence-transformers too.
_SETTINGS = (
  'config.json',
  'generation_config.json',
  'modules.json',
  'sentence_*_config.json',
  '[0-9]_*/config.json',
  '[0-9]_*/model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  '*.model',
  '*.spm',
  'chat_template.*',
  '*.index.json',
)


def locate(field: str, name: str) -> pathlib.Path:
  """The directory of a model's files, downloaded if they are not here yet.

  A model in the Hub's local cache is used as it is, without the network.

  Args:
    field: the config's field, for messages.
    name: a local directory or a name on the Hugging Face Hub.

  Raises:
    InputError: if there is no such model, it has no weights that can be read
      here, or it would have to be downloaded and cannot.
  """
  folder = _at_hand(field, name)
  if folder is None:
    folder = _download(field, name)
  if not weight_files(folder):
    raise InputError(
      f'{field}: {name!r} has no weights in {folder}; allowed: a directory '
      f'with {" or ".join(WEIGHTS)} (a pytorch_model.bin must be saved '
      'again as safetensors)'
    )
  return folder


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of weights in a directory, of the first kind in `WEIGHTS`."""
  for pattern in WEIGHTS:
    if files := sorted(folder.glob(pattern)):
      return files
  return []


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of weights to read: those that an index names, or the only one.

  Raises:
    InputError: if a file that the index names is missing.
  """
  files = weight_files(folder)
  kind = files[0].suffix
  for path in files:
    if path.name in ('model.safetensors', 'flax_model.msgpack'):
      return [path]

  for index in folder.glob(f'*{kind}.index.json'):
    try:
      named = sorted(set(read_json(index)['weight_map'].values()))
    except (KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f'{index}: it names no weights ({type(error).__name__}: {error}); '
        'allowed: an undamaged one'
      ) from error
    for name in named:
      if not (folder / name).exists():
        raise InputError(
          f'{folder / name}: missing, though {index.name} names it; allowed: '
          'a complete model'
        )
    return [folder / name for name in named]
  return files


def is_torch(folder: pathlib.Path) -> bool:
  """Whether a directory's weights are safetensors with torch's names.

  Raises:
    InputError: if a file cannot be read.
  """
  files = shards(folder)
  if files[0].suffix != '.safetensors':
    return False
  import safetensors

  with readable(files[0]), safetensors.safe_open(files[0], 'numpy') as tensors:
    return (tensors.metadata() or {}).get('format') != 'flax'


@contextlib.contextmanager
def readable(file: pathlib.Path) -> Iterator[None]:
  """Turns whatever a parser raises into an error that names the file.

  Args:
    file: what is read inside.

  Raises:
    InputError: in place of all errors but itself.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f'{file}: cannot be read ({type(error).__name__}: {error}); it may be '
      'cut short'
    ) from error


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file, or None where there is no such file.

  Raises:
    InputError: if it is not JSON.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise InputError(f'{path}: not valid JSON ({error})') from error


def identity(field: str, name: str, notes: str = '') -> str:
  """What tells a model from all others: a hash of its files' content.

  Args:
    field: the config's field, for messages.
    name: a local directory or a name on the Hugging Face Hub.
    notes: folder in which the identity is noted while the model is available,
      and looked up when it is not; '' for none.

  Raises:
    InputError: if the model is neither available nor noted, and `locate` fails.
  """
  note = None
  if notes:
    key = hashlib.sha256(name.encode()).hexdigest()[:24]
    note = pathlib.Path(notes, 'models', key, 'identity.json')
    bucket_copy.fetch_folder(note.parent)

  folder = _at_hand(field, name, missing_ok=bool(note and note.exists()))
  if folder is None or not weight_files(folder):
    if note and note.exists():
      return read_json(note)['identity']
    folder = locate(field, name)

  files = {path for pattern in _SETTINGS for path in folder.glob(pattern)}
  files.update(weight_files(folder))
  found = _hash(
    tuple(
      (
        str(path.relative_to(folder)),
        path.resolve(),
        path.stat().st_mtime_ns,
        path.stat().st_size,
      )
      for path in sorted(files)
    )
  )

  if note:
    content = json.dumps({'model': name, 'identity': found}, indent=1)
    if not note.exists() or note.read_text(encoding='utf-8') != content:
      write_atomically(note, content)
      bucket_copy.publish_folder(note.parent)
  return found


@functools.lru_cache(maxsize=8)
def _hash(files: tuple[tuple[str, pathlib.Path, int, int], ...]) -> str:
  """A hash over files; sizes and times of change only keep the cache right.

  Args:
    files: of each its name, path, time of change (ns) and size (bytes).
  """
  total = hashlib.sha256()
  for name, path, _, _ in files:
    with open(path, 'rb') as file:
      total.update(f'{name}\0'.encode())
      total.update(hashlib.file_digest(file, 'sha256').digest())
  return total.hexdigest()[:32]


def _at_hand(
  field: str, name: str, missing_ok: bool = False
) -> pathlib.Path | None:
  """The directory of a model that needs no download, or None."""
  if not name:
    raise checks.not_allowed(
      field, '', "a model's directory or its name on the Hugging Face Hub"
    )
  folder = pathlib.Path(name).expanduser()
  if folder.is_dir():
    return folder

  if name.startswith(('/', '.', '~')) or name.count('/') > 1:
    if missing_ok:
      return None
    raise InputError(
      f'{field}: {name!r} is not a directory; allowed: a directory or a '
      'name on the Hugging Face Hub, as owner/model'
    )

  try:
    from huggingface_hub import errors
    from huggingface_hub import snapshot_download
  except ImportError:
    return None
  try:
    cached = pathlib.Path(snapshot_download(name, local_files_only=True))
  except (errors.LocalEntryNotFoundError, errors.HFValidationError):
    return None
  complete = (cached / 'config.json').exists() and weight_files(cached)
  return cached if complete else None


def _download(field: str, name: str) -> pathlib.Path:
  """Downloads a model from the Hub, with one kind of weights only."""
  try:
    from huggingface_hub import errors
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise no_transformers(field, error) from error
  try:
    folder = pathlib.Path(snapshot_download(name, allow_patterns=[*_SETTINGS]))
    for pattern in WEIGHTS:
      if not weight_files(folder):
        snapshot_download(name, allow_patterns=[pattern])
    return folder
  except errors.GatedRepoError as error:
    raise InputError(
      f'{field}: {name!r} is only open to those whom its owner admits; log '
      'in to the Hugging Face Hub with such an account, or name a local '
      'directory'
    ) from error
  except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
    raise InputError(
      f'{field}: {name!r} is neither a directory here nor a model on the '
      'Hugging Face Hub'
    ) from error
  # The other errors, of time-outs and proxies for example, share no smaller
  # base class.
  except (OSError, errors.HfHubHTTPError) as error:
    raise InputError(
      f'{field}: {name!r} is not in the local cache and the Hugging Face '
      f'Hub cannot be reached ({type(error).__name__}: {error}); allowed: a '
      'local directory, or a network'
    ) from error


def no_transformers(field: str, error: ImportError) -> InputError:
  """The error for a machine without transformers."""
  return InputError(
    f'{field}: this needs the package transformers, 4.57 or later '
    f'({error}); install it, or use a store that is finished'
  )
