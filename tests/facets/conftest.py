"""Small event logs, built by hand."""

import pytest

from tests.testing import logs


@pytest.fixture(name='make_log', scope='session')
def fixture_make_log():
  return logs.log_of_events
