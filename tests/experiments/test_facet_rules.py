"""The rules that tell what a facet's text says."""

import pytest

from dynllm_jax.facets import compressed_prompts
from experiments import facet_rules

OWN = frozenset({'drama', 'science fiction', 'drama queen'})
CATALOGUE = OWN | {'horror', 'queen', 'tv'}


@pytest.mark.parametrize(
  'text, names, invents',
  [
    ('Drama, mostly', True, False),
    ('old science fiction', True, False),
    ('Horror and drama', True, True),
    ('horrors, melodrama', False, False),  # whole words alone
    ('a queen', False, False),  # within a name that was bought
    ('tv', False, False),  # too short to be a name
    ('', False, False),
  ],
)
def test_a_text_names_what_was_bought_and_what_was_not(text, names, invents):
  found = facet_rules.check(text, OWN, CATALOGUE)
  assert found == (bool(text), True, names, invents)


def test_what_was_bought_may_have_no_names():
  assert facet_rules.check('', frozenset(), CATALOGUE) == (
    *(False, False),
    *(False, False),
  )


@pytest.mark.parametrize(
  'text, expected',
  [
    ('Ancient Rome, comedies', True),
    ('comedies, Old Cities.', True),
    ('Roman comedies, cities', False),
    ('history', False),  # a word alone may well be the customer's
    ('', False),
  ],
)
def test_a_phrase_of_the_examples_is_a_repetition(text, expected):
  told = '\n'.join(answer for _, answer in compressed_prompts.EXAMPLES)
  assert facet_rules.repeats(text, told) == expected
