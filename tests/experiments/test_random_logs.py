"""Random logs for measurements have the shape that they state."""

import numpy as np
import pytest

from experiments import random_logs


@pytest.mark.parametrize('active', [0, 4])
def test_uniform_logs(active):
  log = random_logs.uniform(500, 40, 60, active=active)
  assert (np.diff(log.times) >= 0).all() and log.times[0] == 0
  assert log.users.min() >= 1 and log.users.max() <= log.num_users == 40
  assert log.items.min() >= 1 and log.items.max() <= log.num_items == 60
  assert not active or len(np.unique(log.users)) <= active


def test_retail_logs_have_invoices():
  log = random_logs.retail(0.1)
  _, lines = np.unique(log.times, return_counts=True)
  assert 15 < lines.mean() < 30 and lines.max() >= 500
  starts = np.flatnonzero(np.diff(log.times, prepend=-1))
  # One buyer an invoice, but where two start in the same second.
  buyers = [len(set(log.users[a:b])) for a, b in zip(starts, starts[1:])]
  assert np.mean(buyers) < 1.1
