"""Amazon reviews of all editions."""

import pytest

from dynllm_jax.datasets.sources import amazon_reviews
from dynllm_jax.types import InputError

REVIEWS_2014 = [
  {
    'reviewerID': 'A1',
    'asin': '0001',
    'helpful': [0, 1],
    'overall': 5.0,
    'reviewText': 'Fine.',
    'unixReviewTime': 1391990400,
  },
  {
    'reviewerID': 'A2',
    'asin': 'B2',
    'reviewerName': 'Zoë',
    'helpful': [],
    'overall': 1.0,
    'unixReviewTime': 1391990400,
  },
  {
    'reviewerID': 'A1',
    'asin': 'B2',
    'overall': 4.0,
    'unixReviewTime': 1392076800,
  },
]
# As published: Python, not JSON.
METADATA_2014 = (
  "{'asin': '0001', 'title': \"Lady's Soap\", 'price': 3.5, 'related': "
  "{'also_bought': ['B2']}, 'categories': [['Beauty', 'Soap'], ['Gifts']]}\n"
  "{'asin': 'B2', 'categories': [['Beauty']], 'brand': 'Prada'}\n"
  "{'asin': 'B2', 'title': 'Again', 'categories': [['Beauty']]}\n"
)
REVIEWS_2023 = [
  {
    'rating': 5.0,
    'images': [],
    'asin': 'V',
    'parent_asin': '0001',
    'user_id': 'A1',
    'timestamp': 1391990400123,
    'verified_purchase': True,
  },
  {
    'rating': 1.0,
    'images': [{'small_image_url': 'x'}],
    'asin': 'W',
    'parent_asin': 'B2',
    'user_id': 'A2',
    'timestamp': 1391990400999,
    'verified_purchase': False,
  },
  {
    'rating': 1.0,
    'images': [],
    'asin': 'W',
    'parent_asin': 'B2',
    'user_id': 'A1',
    'timestamp': 1392076800000,
  },
]
METADATA_2023 = [
  {
    'main_category': 'All Beauty',
    'title': "Lady's Soap",
    'store': None,
    'categories': ['Beauty', 'Soap'],
    'details': {'Brand': 'x'},
    'parent_asin': '0001',
    'price': 'from 3.5',
  },
  {
    'main_category': 'All Beauty',
    'title': None,
    'store': 'Prada',
    'categories': ['Beauty'],
    'details': {'Size': 3},
    'parent_asin': 'B2',
    'price': 17.0,
  },
]


@pytest.mark.parametrize(
  'reviews,metadata',
  [(REVIEWS_2014, METADATA_2014), (REVIEWS_2023, METADATA_2023)],
)
@pytest.mark.parametrize('suffix', ['.json.gz', '.jsonl'])
def test_editions_agree(make_config, write, reviews, metadata, suffix):
  log = amazon_reviews.read(
    make_config(
      events=write('reviews' + suffix, reviews),
      items=write('meta' + suffix, metadata),
    )
  )
  assert log.users.tolist() == ['A1', 'A2', 'A1']
  assert log.items.tolist() == ['0001', 'B2', 'B2']
  assert log.times.tolist() == [1391990400, 1391990400, 1392076800]
  assert log.item_ids.tolist() == ['0001', 'B2']
  assert log.titles.tolist() == ["Lady's Soap", '']
  assert log.categories.tolist() == ['Beauty > Soap', 'Beauty']
  assert log.brands.tolist() == ['', 'Prada']
  assert log.counts['rows read'] == log.counts['events read'] == 3
  assert log.counts['item table: items without a title'] == 1


def test_without_metadata(make_config, write):
  log = amazon_reviews.read(make_config(events=write('r.json', REVIEWS_2014)))
  assert len(log.item_ids) == 0 and 'without metadata' in log.source


def test_joined_csv_files(make_config, write):
  log = amazon_reviews.read(
    make_config(
      events=write(
        'interactions.csv', 'user_id,item_id,timestamp\nA1,0001,1391990400\n'
      ),
      items=write(
        'items.csv',
        "item_id,title,category,brand\n0001,Soap,\"'Beauty', 'Soap'\",\n",
      ),
    )
  )
  assert log.items.tolist() == ['0001']
  assert log.categories.tolist() == ["'Beauty', 'Soap'"]


def test_bad_input(make_config, write):
  path = write('r.json', [{'a': 1}])
  with pytest.raises(InputError, match="no column 'reviewerID'; there"):
    amazon_reviews.read(make_config(events=path))
  broken = [dict(REVIEWS_2014[0]), dict(REVIEWS_2014[1], asin=None)]
  path = write('r.json', broken)
  with pytest.raises(InputError, match=r"row 2 \(line 2\), column 'asin'"):
    amazon_reviews.read(make_config(events=path))
  path = write('meta.json', "{'asin': 'B2', 'categories': open('x')}\n")
  with pytest.raises(InputError, match='line 1.*not a JSON object'):
    amazon_reviews.read(
      make_config(events=write('r.json', REVIEWS_2014), items=path)
    )
