"""For mkdocs: README is the first page, and links into the code stay alive.

The pages are written to be read in the repository as well, where a link may
lead out of this folder. In the site such a link names the file instead.
"""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parent.parent
_LINK = re.compile(r'(!?)\[([^]]*)\]\(([^)\s]+)\)')


def on_files(files: Any, config: Any) -> Any:
  """Adds README.md as index.md."""
  text = (_ROOT / 'README.md').read_text(encoding='utf-8')
  files.append(File.generated(config, 'index.md', content=_of_readme(text)))
  for path in (_ROOT / 'experiments' / 'results').glob('*.svg'):
    place = f'pictures/{path.name}'
    files.append(File.generated(config, place, content=path.read_bytes()))
  return files


def on_page_markdown(markdown: str, page: Any, **about: Any) -> str:
  """Replaces links out of the folder by the names of what they lead to."""
  del page, about
  return _LINK.sub(_inside, markdown)


def _of_readme(text: str) -> str:
  """README.md as a page of this folder."""

  def moved(match: re.Match[str]) -> str:
    mark, words, target = match.groups()
    if '://' in target or target.startswith('#'):
      return match[0]
    if target.startswith('docs/'):
      return f'{mark}[{words}]({target.removeprefix("docs/")})'
    return f'{mark}[{words}](../{target})'

  return _LINK.sub(moved, text)


def _inside(match: re.Match[str]) -> str:
  mark, words, target = match.groups()
  if not target.startswith('../'):
    return match[0]
  place, _, anchor = target.removeprefix('../').partition('#')
  if place == 'README.md':
    return f'[{words}](index.md{"#" + anchor if anchor else ""})'
  if mark:
    return f'![{words}](pictures/{pathlib.Path(place).name})'
  return words if place in words else f'{words} (`{place}`)'
