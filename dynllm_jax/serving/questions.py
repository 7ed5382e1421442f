"""Questions and answers as JSON values, the same on every way to a model.

A question is an object with one key, which says what is asked, and its fields:

    {"observe": {"user": "u17", "item": "b3", "time": 1700000000}}
    {"add_items": {"item": "b99", "title": "Water glasses"}}
    {"recommend": {"user": "u17", "k": 10, "exclude_seen": true}}
    {"score": {"user": "u17", "items": ["b3", "b99"]}}
    {"similar_items": {"item": "b3", "k": 5}}
    {"explain": {"user": "u17", "item": "b3"}}

An event may have an `id` of its client's, by which it is known if it is sent
again. The answer is an object with the same key. Several users are asked about
as `"users": [...]`, and several events or items are observed or added as a
list. A refused question changes nothing.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
from typing import Any

import numpy as np

from dynllm_jax import checks
from dynllm_jax.live.answers import Recommendations
from dynllm_jax.live.answers import Similar
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.types import InputError

_FIELDS = {
  'recommend': (
    *('user', 'users', 'k', 'time', 'exact', 'exclude_seen'),
    *('candidates', 'categories', 'exclude'),
  ),
  'score': ('user', 'users', 'items', 'time', 'exact'),
  'similar_items': ('item', 'k'),
  'explain': ('user', 'item', 'time', 'exact'),
}


def answer(recommender: Recommender, question: Any) -> dict[str, Any]:
  """Answers a question.

  Args:
    recommender: the model.
    question: JSON values, as above.

  Returns:
    JSON values; numbers are finite.

  Raises:
    InputError: naming what is wrong with it; nothing is changed.
  """
  if not isinstance(question, Mapping) or len(question) != 1:
    raise checks.not_allowed(
      'question', _shown(question), f'an object with one of {_kinds()}'
    )
  ((kind, fields),) = question.items()
  if kind not in _ANSWERS:
    raise InputError(f'question: {kind!r} is none; allowed: {_kinds()}')
  if kind in _FIELDS:
    _check_fields(kind, fields)
  return {kind: _ANSWERS[kind](recommender, fields)}


def parse(text: str | bytes) -> Any:
  """JSON values of a text; unlike `json.loads` it knows no NaN.

  Raises:
    InputError: if it is no JSON.
  """
  try:
    return json.loads(text, parse_constant=_no_constant)
  # A text of a few kilobytes can nest deeper than the parser goes.
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'it is no JSON ({" ".join(str(error).split())})'
    ) from error


def as_text(values: Any) -> str:
  """JSON values as one line."""
  return json.dumps(values, ensure_ascii=False, allow_nan=False)


def observe(
  recommender: Recommender, events: Sequence[Mapping[str, Any]]
) -> Observed:
  """Takes in events, each of which may have an `id` of its client's.

  Args:
    recommender: the model.
    events: as `Recommender.observe` takes them.

  Raises:
    InputError: as `Recommender.observe`.
  """
  ids = [event.get('id', '') for event in events]
  rows = [
    {name: value for name, value in event.items() if name != 'id'}
    for event in events
  ]
  return recommender.observe(rows, ids=ids if any(ids) else None)


# ------------------------------------------------------- answers as JSON values


def observed(found: Observed) -> dict[str, Any]:
  """What became of events."""
  return {
    'events': found.events,
    'new_users': found.new_users,
    'new_items': found.new_items,
    'late': found.late,
    'repeats': found.repeats,
    'position': found.position,
  }


def recommended(
  recommender: Recommender, found: Recommendations
) -> dict[str, Any]:
  """The items of a user, the best first."""
  return {
    'user': found.user,
    'known': recommender.has_user(found.user),
    'items': [
      {'item': item, 'score': finite(score), 'title': title}
      for item, score, title in zip(found.items, found.scores, found.titles)
    ],
  }


def alike(found: Similar) -> dict[str, Any]:
  """The items like an item, the most alike first."""
  return {
    'item': found.item,
    'items': [
      {'item': item, 'cosine': finite(cosine), 'title': title}
      for item, cosine, title in zip(found.items, found.cosines, found.titles)
    ],
  }


def as_values(found: Any) -> Any:
  """Nested tuples with names, arrays and numbers as JSON values."""
  if hasattr(found, '_asdict'):
    return {name: as_values(value) for name, value in found._asdict().items()}
  if isinstance(found, Mapping):
    return {str(name): as_values(value) for name, value in found.items()}
  if isinstance(found, np.ndarray):
    return as_values(found.tolist())
  if isinstance(found, (list, tuple)):
    return [as_values(value) for value in found]
  if isinstance(found, np.integer):
    return int(found)
  if isinstance(found, (float, np.floating)):
    return finite(found)
  return found


def finite(number: Any) -> float:
  """A number as JSON can hold it.

  Raises:
    InputError: if it is none; parameters of a run may have diverged.
  """
  if not math.isfinite(number):
    raise InputError(
      'a score is not finite: the parameters of the run have diverged; '
      'allowed: a run with a lower config.train.learning_rate'
    )
  return float(number)


# ------------------------------------------------------------------- the kinds


def _observe(recommender: Recommender, fields: Any) -> Any:
  return observed(observe(recommender, _rows('observe', fields)))


def _add_items(recommender: Recommender, fields: Any) -> Any:
  return observed(recommender.add_items(_rows('add_items', fields)))


def _recommend(recommender: Recommender, fields: Mapping[str, Any]) -> Any:
  for field in ('candidates', 'categories', 'exclude'):
    if fields.get(field) is not None:
      check_names(field, fields[field])
  for field in ('exact', 'exclude_seen'):
    _check_flag(field, fields.get(field, False))
  options = {
    name: value
    for name, value in fields.items()
    if name not in ('user', 'users')
  }
  users = _users(fields)
  found = recommender.recommend(users, **options)
  if isinstance(users, list):
    return [recommended(recommender, one) for one in found]
  return recommended(recommender, found)


def _score(recommender: Recommender, fields: Mapping[str, Any]) -> Any:
  users = _users(fields)
  check_names('items', fields.get('items'))
  _check_flag('exact', fields.get('exact', False))
  scores = recommender.score(
    users,
    fields['items'],
    fields.get('time'),
    exact=fields.get('exact', False),
  )
  return {
    'users' if isinstance(users, list) else 'user': users,
    'items': fields['items'],
    'scores': as_values(scores),
  }


def _similar_items(recommender: Recommender, fields: Mapping[str, Any]) -> Any:
  return alike(
    recommender.similar_items(fields.get('item', ''), fields.get('k', 10))
  )


def _explain(recommender: Recommender, fields: Mapping[str, Any]) -> Any:
  _check_flag('exact', fields.get('exact', False))
  found = recommender.explain(
    fields.get('user', ''),
    fields.get('item', ''),
    fields.get('time'),
    exact=fields.get('exact', False),
  )
  return as_values(found)


_ANSWERS: dict[str, Callable[[Recommender, Any], Any]] = {
  'observe': _observe,
  'add_items': _add_items,
  'recommend': _recommend,
  'score': _score,
  'similar_items': _similar_items,
  'explain': _explain,
}


def check_names(field: str, value: Any) -> None:
  """Stops where a field is no list of ids or names.

  Raises:
    InputError: naming the field.
  """
  if not isinstance(value, list) or not all(
    isinstance(name, (str, int)) and not isinstance(name, bool)
    for name in value
  ):
    raise checks.not_allowed(field, _shown(value), 'a list of strings')


def _rows(kind: str, fields: Any) -> Any:
  """Events or items, one or many, each an object."""
  rows = fields if isinstance(fields, list) else [fields]
  for number, row in enumerate(rows):
    if not isinstance(row, Mapping):
      raise checks.not_allowed(
        f'{kind}[{number}]', _shown(row), 'an object, as {"item": ...}'
      )
  return rows


def _users(fields: Mapping[str, Any]) -> Any:
  """The user, or the list of users, that a question is about."""
  if ('user' in fields) == ('users' in fields):
    raise InputError('user: allowed: one "user", or a list of "users"')
  if 'user' in fields:
    check_names('user', [fields['user']])
    return str(fields['user'])
  check_names('users', fields['users'])
  return [str(user) for user in fields['users']]


def _check_fields(kind: str, fields: Any) -> None:
  if not isinstance(fields, Mapping):
    raise checks.not_allowed(
      kind, _shown(fields), f'an object with {", ".join(_FIELDS[kind])}'
    )
  for name in fields:
    if name not in _FIELDS[kind]:
      raise InputError(
        f'{kind}: {_shown(name)} is no field; allowed: '
        f'{", ".join(_FIELDS[kind])}'
      )


def _check_flag(field: str, value: Any) -> None:
  if not isinstance(value, bool):
    raise checks.not_allowed(field, _shown(value), 'true, false')


def _kinds() -> str:
  return ', '.join(_ANSWERS)


def _shown(value: Any) -> Any:
  """A value for an error, cut if it is long."""
  text = repr(value)
  return value if len(text) <= 80 else text[:77] + '...'


def _no_constant(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON')
