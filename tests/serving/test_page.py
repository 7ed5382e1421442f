"""The page, in a real browser."""

from tests.testing import browser
from tests.testing import live_runs

LISTED = (
  "return [...document.querySelectorAll('#recommended > li')]"
  '.map((row) => row.dataset.item)'
)
TAKEN = "return document.querySelector('#purchases li div')?.textContent"


def test_an_item_is_observed_and_the_list_changes(server):
  browser.require()
  with browser.opened() as page:
    page.open(server.url)
    page.wait("return document.querySelectorAll('#users option').length > 0")
    page.type('#user', 'u5')
    page.click('#ask button')
    page.wait(f'{LISTED}.length')
    before = page.run(LISTED)
    wanted = server.client.get('/recommendations/u5').json()['items']
    assert before == [one['item'] for one in wanted]

    page.click('#recommended li:nth-child(4) .take')
    title = server.app.ready.recommender.title(before[3])
    page.wait(f'{TAKEN} === arguments[0]', title)
    page.wait("return document.querySelector('#status').textContent")
    after = page.run(LISTED)
    assert after != before
    wanted = server.client.get('/recommendations/u5').json()['items']
    assert after == [one['item'] for one in wanted]

    page.click('#recommended li:nth-child(1) .row button')
    page.wait("return document.querySelector('.why')")
    assert 'network' in page.text('.why')
    assert page.problems() == []


def test_texts_are_texts_and_an_error_is_shown(server):
  browser.require()
  client = server.client
  item = {'item': '<b>77', 'title': live_runs.EVIL_TITLE, 'category': 'Evil'}
  assert client.post('/items', json=item).status_code == 200
  user = '<i>&"u'
  event = {'user': user, 'item': '<b>77', 'time': 1_700_000_000}
  assert client.post('/events', json=event).status_code == 200
  with browser.opened(width=400, height=800, dark=True) as page:
    page.open(server.url)
    page.type('#user', user)
    page.click('#ask button')
    page.wait(f'{TAKEN} === arguments[0]', live_runs.EVIL_TITLE)
    assert page.run('return document.images.length') == 0
    assert page.run('return document.title') == 'Recommendations'
    # Nothing is wider than a telephone.
    wide = 'return document.documentElement.scrollWidth > innerWidth'
    assert not page.run(wide)

    page.run("document.querySelector('#item').maxLength = 2000")
    page.run("document.querySelector('#item').value = 'x'.repeat(1025)")
    page.click('#take button')
    page.wait("return document.querySelector('#status.bad')")
    assert 'body.item' in page.text('#status')
