"""What several tests share.

`logs` makes small logs and what systems read of them, `variants` tiny
configurations, `tiny_runs` and `tiny_slices` what is trained on them, `replays`
scores of a whole log; `event_files` has an event log in files of every form.
`meshes` runs on fake devices, in a process of its own. `tiny_models` saves
language models, `facet_answers` answers as they do; `fake_endpoint` and
`fake_bucket` are servers on this machine, `commands` runs the command as a user
does, and `scripts` runs Python that a test may kill.
"""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # of the checkout
