"""A real browser without a window: Chromium, over the WebDriver protocol."""

import base64
from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import subprocess
import time
from typing import Any

import httpx
import pytest

_ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'  # the protocol's name of one


def require() -> None:
  """Skips a test where there is no Chromium."""
  for program in ('chromium', 'chromedriver'):
    if shutil.which(program) is None:
      pytest.skip(f'there is no {program}; Debian: apt install chromium-driver')


class Browser:
  """One page of a browser.

  Args:
    client: of the session's URL.
  """

  def __init__(self, client: httpx.Client) -> None:
    self._client = client

  def open(self, url: str) -> None:
    """Goes to a page."""
    self._ask('POST', '/url', {'url': url})

  def run(self, script: str, *arguments: Any) -> Any:
    """What a script returns; `return` and `arguments[0]` are known to it."""
    body = {'script': script, 'args': list(arguments)}
    return self._ask('POST', '/execute/sync', body)

  def text(self, selector: str) -> str:
    """The text of the first element that a selector finds."""
    return self._ask('GET', f'/element/{self._find(selector)}/text')

  def click(self, selector: str) -> None:
    """Clicks it, as somebody with a mouse does."""
    self._ask('POST', f'/element/{self._find(selector)}/click', {})

  def type(self, selector: str, text: str) -> None:
    """Types into it."""
    self._ask('POST', f'/element/{self._find(selector)}/value', {'text': text})

  def wait(self, script: str, *arguments: Any) -> Any:
    """What a script returns, once that is true; it is given a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
      if found := self.run(script, *arguments):
        return found
      time.sleep(0.05)
    raise AssertionError(f'not within a minute: {script}')

  def picture(self, path: pathlib.Path) -> None:
    """Writes what is seen, as PNG."""
    path.write_bytes(base64.b64decode(self._ask('GET', '/screenshot')))

  def problems(self) -> list[str]:
    """What the page's console has said since this was asked last."""
    logs = self._ask('POST', '/se/log', {'type': 'browser'})
    return [entry['message'] for entry in logs]

  def _find(self, selector: str) -> str:
    body = {'using': 'css selector', 'value': selector}
    return self._ask('POST', '/element', body)[_ELEMENT]

  def _ask(self, method: str, path: str, body: Any = None) -> Any:
    answer = self._client.request(method, path, json=body)
    value = answer.json()['value']
    assert answer.is_success, value
    return value


@contextlib.contextmanager
def opened(
  width: int = 1200, height: int = 900, dark: bool = False
) -> Iterator[Browser]:
  """A browser, closed at the end.

  Args:
    width, height: of the window, pixels.
    dark: whether pages are asked to be.
  """
  driver = subprocess.Popen(
    ['chromedriver', '--port=0'],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  try:
    assert driver.stdout is not None
    line = next(line for line in driver.stdout if 'success' in line)
    port = line.split('on port')[1].strip(' .\n')
    arguments = [
      '--headless=new',
      '--no-sandbox',  # which a container's root does not get
      '--disable-dev-shm-usage',
      '--disable-gpu',
      f'--window-size={width},{height}',
      '--hide-scrollbars',
      *(['--blink-settings=preferredColorScheme=0'] if dark else []),
    ]
    wanted = {
      'browserName': 'chrome',
      'goog:chromeOptions': {
        'args': arguments,
        'binary': shutil.which('chromium'),
      },
      'goog:loggingPrefs': {'browser': 'ALL'},
    }
    with httpx.Client(timeout=60) as client:
      made = client.post(
        f'http://127.0.0.1:{port}/session',
        json={'capabilities': {'alwaysMatch': wanted}},
      ).json()['value']
      assert 'sessionId' in made, made
      client.base_url = f'http://127.0.0.1:{port}/session/{made["sessionId"]}'
      yield Browser(client)
      client.delete('')
  finally:
    driver.terminate()
    driver.wait()
