"""The made-up catalog of a simulated shop: tastes, popularity, texts."""

from typing import NamedTuple

import numpy as np

TASTE_DIM = 16
DAYS = 730
PERIOD_DAYS = 28  # Popularity is constant within a period.
NUM_PERIODS = -(-DAYS // PERIOD_DAYS)
_NUM_FOLLOWERS = 3
_PER_BRAND = 25  # items, on average

_DEPARTMENTS = {
  'Home & Kitchen': (
    'Mug',
    'Tea Kettle',
    'Table Lamp',
    'Storage Box',
    'Cushion',
    'Knife Set',
    'Bath Towel',
    'Wall Clock',
  ),
  'Beauty': (
    'Face Cream',
    'Lipstick',
    'Shampoo',
    'Hair Dryer',
    'Perfume',
    'Eye Shadow',
    'Hand Soap',
    'Sunscreen',
  ),
  'Clothing': (
    'T-Shirt',
    'Sneakers',
    'Down Jacket',
    'Dress',
    'Jeans',
    'Wool Scarf',
    'Socks',
    'Handbag',
  ),
  'Electronics': (
    'Headphones',
    'Phone Case',
    'Keyboard',
    'Power Bank',
    'Smart Watch',
    'Speaker',
    'Webcam',
    'Charging Cable',
  ),
  'Food': (
    'Green Tea',
    'Coffee Beans',
    'Dried Fruit',
    'Noodles',
    'Chocolate',
    'Olive Oil',
    'Rice Cakes',
    'Mixed Nuts',
  ),
  'Mother & Baby': (
    'Baby Bottle',
    'Diapers',
    'Toy Blocks',
    'Stroller',
    'Milk Powder',
    'Bib',
    'Baby Lotion',
    'Picture Book',
  ),
  'Sports': (
    'Yoga Mat',
    'Dumbbell',
    'Running Shorts',
    'Tent',
    'Bike Helmet',
    'Swim Goggles',
    'Backpack',
    'Jump Rope',
  ),
  'Pets & Garden': (
    'Cat Litter',
    'Dog Leash',
    'Plant Pot',
    'Fish Tank',
    'Bird Feeder',
    'Garden Hose',
    'Pet Bed',
    'Pruner',
  ),
}
_ATTRIBUTES = (
  'Red',
  'Blue',
  'Ivory',
  'Black',
  'Olive',
  'Pink',
  'Grey',
  'Golden',
  'Bamboo',
  'Cotton',
  'Ceramic',
  'Leather',
  'Steel',
  'Glass',
  'Linen',
  'Classic',
  'Modern',
  'Vintage',
  'Nordic',
  'Compact',
  'Portable',
  'Soft',
  'Light',
  'Large',
  'Mini',
  'Family',
  'Travel',
  'Premium',
  'Everyday',
  'Organic',
  'Foldable',
  'Quiet',
  'Winter',
  'Summer',
  'Gift',
  'New',
)
_SYLLABLES = (
  ('Ka', 'Lo', 'Mi', 'Su', 'Te', 'Vo', 'An', 'Ber', 'Del', 'Hua'),
  ('ra', 'ne', 'li', 'mo', 'sha', 'ti', 'vel', 'do', 'xin', 'pe'),
  ('', 'n', 'to', 'ri', 'lux', 'co', 'way', 'mei', 'ka', 'ta'),
)


class Catalog(NamedTuple):
  """A catalog; items are numbered from 0, ordered by leaf category.

  Attributes:
    category: i64[items], leaf categories, ascending.
    category_tastes: f64[categories, TASTE_DIM].
    tastes: f64[items, TASTE_DIM].
    cumulative: f64[NUM_PERIODS * items + 1], running sum of the items'
      popularity, period after period.
    followers: i64[items, 3], what is often bought next.
    titles, categories, brands: str[items].
  """

  category: np.ndarray
  category_tastes: np.ndarray
  tastes: np.ndarray
  cumulative: np.ndarray
  followers: np.ndarray
  titles: np.ndarray
  categories: np.ndarray
  brands: np.ndarray


def make_catalog(
  rng: np.random.Generator, num_items: int, num_leaves: int, title_length: float
) -> Catalog:
  """Draws a catalog.

  Args:
    rng: the generator.
    num_items: how many items.
    num_leaves: leaf categories in each of the eight departments, up to 8.
    title_length: mean length of the titles in characters.
  """
  leaves = [
    (department, leaf)
    for department, names in _DEPARTMENTS.items()
    for leaf in names[:num_leaves]
  ]
  shares = rng.dirichlet(np.full(len(leaves), 4.0))
  # Two of every leaf at least, so that an item has something to follow it.
  category = np.sort(
    np.concatenate(
      [
        np.tile(np.arange(len(leaves)), 2),
        rng.choice(len(leaves), num_items - 2 * len(leaves), p=shares),
      ]
    )
  )

  num_brands = max(num_items // _PER_BRAND, len(_DEPARTMENTS))
  # A brand belongs to one department: brand b to department b mod 8.
  slots = rng.zipf(1.6, num_items) % (num_brands // len(_DEPARTMENTS))
  brand = slots * len(_DEPARTMENTS) + category // num_leaves

  category_tastes = _directions(rng, len(leaves))
  brand_tastes = _directions(rng, num_brands)
  tastes = (
    0.6 * category_tastes[category]
    + 0.5 * brand_tastes[brand]
    + 0.6 * _directions(rng, num_items)
  )
  popularity = _popularity(rng, num_items)
  names = _brand_names(rng, num_brands)
  leaf_names = [leaves[c][1] for c in category]
  brands = [names[b] for b in brand]
  return Catalog(
    category=category,
    category_tastes=category_tastes,
    tastes=tastes,
    cumulative=np.concatenate([[0.0], np.cumsum(popularity)]),
    followers=_followers(rng, category, popularity.mean(axis=0)),
    titles=_titles(rng, brands, leaf_names, title_length),
    categories=np.array([' > '.join(leaves[c]) for c in category], object),
    brands=np.array(brands, object),
  )


def draw_items(
  rng: np.random.Generator,
  catalog: Catalog,
  periods: np.ndarray,
  categories: np.ndarray,
  count: int,
) -> np.ndarray:
  """Draws items of categories by their popularity in a period.

  Args:
    periods, categories: i64[draws].
    count: items to draw for each, with replacement.

  Returns:
    i64[draws, count].
  """
  num_items = len(catalog.category)
  low = periods * num_items + np.searchsorted(catalog.category, categories)
  high = periods * num_items + np.searchsorted(
    catalog.category, categories, 'right'
  )
  start, end = catalog.cumulative[low], catalog.cumulative[high]
  point = rng.random((len(periods), count))
  point = start[:, None] + point * (end - start)[:, None]
  found = np.searchsorted(catalog.cumulative, point, 'right') - 1
  # Rounding may put a point on the far end.
  found = np.clip(found, low[:, None], high[:, None] - 1)
  return found - (periods * num_items)[:, None]


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
  vectors = rng.normal(size=(count, TASTE_DIM))
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _popularity(rng: np.random.Generator, num_items: int) -> np.ndarray:
  """A power law that drifts; items appear and fade, f64[periods, items]."""
  rank = rng.permutation(num_items) + 1.0
  drift = np.cumsum(rng.normal(0, 0.12, (NUM_PERIODS, num_items)), axis=0)
  period = np.arange(NUM_PERIODS)[:, None]
  appears = np.where(
    rng.random(num_items) < 0.6, 0, rng.integers(0, NUM_PERIODS, num_items)
  )
  fades = appears + np.where(
    rng.random(num_items) < 0.6, NUM_PERIODS, rng.geometric(0.12, num_items)
  )
  alive = np.where(
    period < appears, 1e-4, np.exp(-0.5 * np.maximum(period - fades, 0)) + 1e-4
  )
  return rank**-0.55 * np.exp(drift) * alive


def _followers(
  rng: np.random.Generator, category: np.ndarray, popularity: np.ndarray
) -> np.ndarray:
  """Items often bought after each: of its own leaf and of one other."""
  num_categories = category[-1] + 1
  other = rng.permutation(num_categories)
  running = np.concatenate([[0.0], np.cumsum(popularity)])
  columns = []
  for column in range(_NUM_FOLLOWERS):
    target = category if column == 0 else other[category]
    low = running[np.searchsorted(category, target)]
    high = running[np.searchsorted(category, target, 'right')]
    point = low + rng.random(len(category)) * (high - low)
    columns.append(np.searchsorted(running, point, 'right') - 1)
  return np.clip(np.stack(columns, axis=1), 0, len(category) - 1)


def _brand_names(rng: np.random.Generator, count: int) -> list[str]:
  names = [
    a + b + c
    for a in _SYLLABLES[0]
    for b in _SYLLABLES[1]
    for c in _SYLLABLES[2]
  ]
  picked = rng.permutation(len(names))
  # When the names are used up, they come again with a number.
  return [
    names[picked[b % len(names)]]
    + ('' if b < len(names) else f' {b // len(names) + 1}')
    for b in range(count)
  ]


def _titles(
  rng: np.random.Generator, brands: list[str], leaves: list[str], length: float
) -> np.ndarray:
  """Titles `brand attributes leaf` of a mean length, str[items]."""
  wanted = np.clip(rng.normal(length, 6, len(brands)), 18, 60)
  words = rng.permuted(
    np.tile(np.arange(len(_ATTRIBUTES)), (len(brands), 1)), axis=1
  )
  shift = 0.0
  for _ in range(4):  # Whole words miss the length; the shift makes up for it.
    titles = [
      _title(*parts) for parts in zip(brands, leaves, words, wanted + shift)
    ]
    shift += length - float(np.mean([len(title) for title in titles]))
  return np.array(titles, object)


def _title(brand: str, leaf: str, words: np.ndarray, length: float) -> str:
  chosen = []
  size = len(brand) + 1 + len(leaf)
  for word in words:
    if size >= length - 3:
      break
    chosen.append(_ATTRIBUTES[word])
    size += 1 + len(chosen[-1])
  return ' '.join([brand, *chosen, leaf])
