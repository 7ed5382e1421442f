"""Rules for fields, and the one line in which an error names a field."""

import ml_collections
import pytest

from dynllm_jax import checks
from dynllm_jax.types import InputError

SECTION = ml_collections.ConfigDict(
  {'size': 3, 'rate': 0.5, 'loss': 'bpr', 'part': {'size': 0}}
)


def refusal(*rules):
  with pytest.raises(InputError) as caught:
    checks.check('config.train', SECTION, rules)
  return str(caught.value)


def test_an_error_has_the_full_name_the_value_and_what_is_allowed():
  assert refusal(checks.at_least('part.size', 1, ' (an example)')) == (
    'config.train.part.size: 0 is not allowed; allowed: 1 or more (an example)'
  )
  assert refusal(checks.one_of('loss', ('softmax', 'bce'))) == (
    "config.train.loss: 'bpr' is not allowed; allowed: softmax, bce"
  )


def test_the_first_rule_that_does_not_hold_is_told():
  message = refusal(
    checks.at_least('size', 3),
    checks.above_zero('part.size'),
    checks.at_least('size', 4),
  )
  assert message.startswith('config.train.part.size: 0 ')


@pytest.mark.parametrize(
  'rule, allowed, others',
  [
    (checks.at_least('x', 2), (2, 2.5), (1, float('nan'))),
    (checks.above_zero('x'), (1e-9, 3), (0, -1, float('nan'))),
    (checks.fraction('x'), (0, 0.5, 1), (-0.1, 1.1, float('nan'))),
    (checks.one_of('x', 'ab'), ('a', 'b'), ('ab', '', None)),
  ],
)
def test_what_each_rule_allows(rule, allowed, others):
  assert all(map(rule.holds, allowed))
  assert not any(map(rule.holds, others))
