"""An example for exported towers: python load_export.py [FOLDER [USER]]

It needs JAX and nothing else: no dynllm_jax, no model code.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp


class Tower:
  """A tower of an export.

  Args:
    folder: of the export.
    kind: 'user' or 'item'.
  """

  def __init__(self, folder: pathlib.Path, kind: str) -> None:
    self.about = json.loads((folder / 'export.json').read_text())
    program = (folder / f'{kind}_tower.stablehlo').read_bytes()
    self._call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    state = jnp.load(folder / 'state.npz')
    names = self.about[f'{kind}_arrays']
    self._arrays = [jnp.asarray(state[name]) for name in names]

  def vectors(self, rows: list[int], time: int | None = None) -> jax.Array:
    """Vectors of users or items.

    Args:
      rows: from 1, in the order of `user_ids.npy` or `item_ids.npy`; 0 is a
        user who is not known. At most as many as the tower takes.
      time: unix seconds; None: just after the newest event.

    Returns:
      f32[rows, dim].
    """
    time = self.about['newest_time'] + 1 if time is None else time
    seconds = jnp.int32(time - self.about['start_time'])
    padded = jnp.zeros(self.about['batch'], jnp.int32)
    padded = padded.at[: len(rows)].set(jnp.array(rows, jnp.int32))
    return self._call(self._arrays, padded, seconds)[: len(rows)]


def main() -> None:
  """Prints the ten items that a user's vector is nearest to."""
  folder = pathlib.Path(sys.argv[1] if sys.argv[1:] else '.')
  users = Tower(folder, 'user')
  ids, items = (
    jnp.load(folder / f'{kind}_ids.npy').tolist() for kind in ('user', 'item')
  )
  user = sys.argv[2] if sys.argv[2:] else ids[0]
  row = ids.index(user) + 1 if user in ids else 0
  (vector,) = users.vectors([row])
  scores = jnp.load(folder / 'item_vectors.npy') @ vector
  for row in jnp.argsort(-scores)[:10].tolist():
    print(f'{items[row]}\t{float(scores[row]):.4f}')


if __name__ == '__main__':
  main()
