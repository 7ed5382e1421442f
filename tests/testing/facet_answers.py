"""Fields, a log and answers for tests of writers with a language model."""

import json
import re

from dynllm_jax import config as config_lib

DAY = 24 * 3600
WINDOW = 10 * DAY
TITLES = ['rose mascara', 'cake tins', 'shea lotion']
BRANDS = ['Acme', '', 'Bolt']
# Five profiles; the first windows of users 1 and 2 are one prompt.
EVENTS = [
  (1, 1, 5),
  (2, 1, 6),
  (1, 2, WINDOW),
  (3, 3, 3 * WINDOW),
  (3, 1, 3 * WINDOW + 7),
  (2, 2, 4 * WINDOW),
]
NUM_PROMPTS = 4


def fields(**changes):
  """`config.facets`, with `writer` changed."""
  facets = config_lib.default().facets
  facets.window_days, facets.encoder.dim = 10.0, 16
  facets.writer.update({'model': 'm', **changes})
  return facets


def good(message):
  """A well-formed answer that tells which prompt it answers."""
  items = re.findall(r'^\S+ \| (.*?) \| ', message, re.MULTILINE)
  dates = re.findall(r'^(\d\S+) \| ', message, re.MULTILINE)
  return json.dumps(
    {
      'crd': f'buys on {" ".join(dates)}',
      'int': ', '.join(items),
      'ctg': 'unknown',
      'brd': 'Acme' if 'Acme' in message else '',
    }
  )


def many(num_users, num_windows):
  """Events with a profile, and a prompt of its own, a user and window."""
  return [
    (user, 1 + (user + window) % 3, window * WINDOW + user * DAY // 30 + k)
    for window in range(num_windows)
    for user in range(1, num_users + 1)
    for k in range(1 + user)
  ]
