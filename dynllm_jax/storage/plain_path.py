"""Folders of any name, for libraries that read some characters as signs.

Orbax looks for files by patterns in which `[lr=0.1]` stands for one letter, and
others write paths as addresses, in which `#` and `%` mean something.
"""

import contextlib
import pathlib
import re
import tempfile

_PLAIN = re.compile(r'[\w./=+,@ -]*')


def plain(folder: pathlib.Path, stack: contextlib.ExitStack) -> pathlib.Path:
  """A path to a folder that has letters and the like alone.

  Args:
    folder: the folder; it is made where only a link can lead to it.
    stack: removes the link when it is closed.

  Returns:
    The folder itself, or a link to it.
  """
  if _PLAIN.fullmatch(str(folder)) and str(folder).isprintable():
    return folder
  folder.mkdir(parents=True, exist_ok=True)
  above = stack.enter_context(tempfile.TemporaryDirectory())
  link = pathlib.Path(above) / 'folder'
  link.symlink_to(folder, target_is_directory=True)
  return link
