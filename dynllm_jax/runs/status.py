"""What checkpoints remember of training, beside the state itself."""

import dataclasses
from typing import Any

WATCHED = 'recall@10'  # on validation, by early stopping (SPEC 4)


@dataclasses.dataclass
class Status:
  """Training so far: where it stands, and what it has shown.

  Every field is a JSON value, and its name is the key in a checkpoint. A new
  one has a default: older checkpoints lack it.

  Attributes:
    identity: the configuration and the data, as identity.py has them.
    commit: of the code that began the run.
    parameters: how many numbers are learned.
    epochs: finished ones.
    best_epoch: the one with the best value on validation, from 1.
    best_value: its `WATCHED` metric.
    history: a record an epoch, the lines of `metrics.jsonl`.
    floors: `{'validation': metrics, 'test': metrics}` of the systems without
      training that were ranked for comparison, by name.
    floors_left_out: why others were not ranked, by name.
    train_step_flops: operations of a training step, as XLA counts them; 0
      where nothing is learned.
    started_from: of the run whose parameters this one began with, its
      `workdir`, `epoch`, `commit` and `data_fingerprint`; None where they were
      drawn at random.
  """

  identity: dict[str, Any]
  commit: str
  parameters: int
  epochs: int = 0
  best_epoch: int | None = None
  best_value: float | None = None
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  floors: dict[str, Any] = dataclasses.field(default_factory=dict)
  floors_left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  train_step_flops: float = 0.0
  started_from: dict[str, Any] | None = None

  def to_json(self) -> dict[str, Any]:
    """The record of a checkpoint."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, record: dict[str, Any]) -> 'Status':
    """The status of a checkpoint's record, also of a later version's.

    Keys that this version does not have are left out.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: record[name] for name in names if name in record})

  def add_epoch(
    self, record: dict[str, Any], summary: dict[str, float], seconds: float
  ) -> bool:
    """Notes a finished epoch.

    Args:
      record: of training, as `prepared.train_one_epoch` returns it.
      summary: metrics on validation, `WATCHED` among them.
      seconds: that ranking validation took.

    Returns:
      Whether it is the best one so far.
    """
    self.epochs += 1
    self.history.append(
      {
        'epoch': self.epochs,
        **record,
        'validation_seconds': seconds,
        **{f'validation_{name}': value for name, value in summary.items()},
      }
    )
    is_best = self.best_value is None or summary[WATCHED] > self.best_value
    if is_best:
      self.best_epoch, self.best_value = self.epochs, summary[WATCHED]
    return is_best
