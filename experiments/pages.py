"""What the pages share: tables, charts, and how figures are written."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import io
import pathlib
from typing import Any

from dynllm_jax.storage import atomic


@contextlib.contextmanager
def drawing(
  path: pathlib.Path, width: float, height: float, panels: int = 1
) -> Iterator[Sequence[Any]]:
  """Gives panels to draw on, side by side, and writes them as SVG at the end.

  Args:
    path: of the file; the same figures give the same bytes.
    width, height: of all panels together, inches.
    panels: how many.

  Yields:
    Matplotlib's axes of each.
  """
  import matplotlib

  matplotlib.use('svg')
  from matplotlib import pyplot

  matplotlib.rcParams['svg.hashsalt'] = 'dynllm_jax'
  figure, axes = pyplot.subplots(
    1, panels, figsize=(width, height), layout='constrained', squeeze=False
  )
  yield axes[0]

  content = io.BytesIO()
  figure.savefig(content, metadata={'Date': None})
  pyplot.close(figure)
  atomic.write_atomically(path, content.getvalue())


def table(head: list[str], body: list[list[Any]]) -> list[str]:
  """The lines of a Markdown table."""
  lines = [head, ['---'] * len(head), *body]
  return ['| ' + ' | '.join(map(str, line)) + ' |' for line in lines]


def named(values: dict[str, Any]) -> str:
  """Names and values in one line."""
  return ', '.join(f'{name} {value}' for name, value in values.items())


def commit(text: str) -> str:
  """A commit in few characters, and whether the checkout had changes."""
  name, _, modified = text.partition('-')
  return f'{name[:7]}-{modified}' if modified else name[:7]


def digits(value: float) -> str:
  """A figure between 0 and 1 to four places, `.1234`."""
  return f'{value:.4f}'.removeprefix('0')
