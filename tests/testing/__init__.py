"""What several tests share: logs, systems, replays, meshes, fakes."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # of the checkout
