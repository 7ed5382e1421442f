"""What the rules say of an item: keywords, product type, category and crowd.

All of it follows from the fixed item table alone.
"""

import collections
from collections.abc import Iterable
import html
import itertools
import math
import re
from typing import NamedTuple

# Letters and digits, joined inside by one mark: t-light, l'oreal, a&b.
_TOKEN = re.compile(r"[^\W_]+(?:['’&+-][^\W_]+)*")
_CUT = re.compile(r'\s-\s|[,;:|()\[\]/]')
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_HAN = re.compile(r'[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+')
_LEVELS = ('>', '›', '|', ';', '/', ',')  # the first one present separates

# Words after which a title names not the product but its use or material.
_LINKS = frozenset(
  ['at', 'by', 'for', 'from', 'in', 'into', 'of', 'on', 'to', 'with', 'without']
)
_FILLERS = _LINKS | frozenset(
  [
    'a',
    'all',
    'an',
    'and',
    'any',
    'are',
    'as',
    'be',
    'best',
    'buy',
    'can',
    'cm',
    'comes',
    'count',
    'ct',
    'de',
    'design',
    'do',
    'each',
    'fl',
    'fluid',
    'free',
    'get',
    'has',
    'have',
    'how',
    'inch',
    'is',
    'it',
    'its',
    'just',
    'kg',
    'la',
    'lb',
    'make',
    'mg',
    'ml',
    'mm',
    'more',
    'my',
    'new',
    'no',
    'not',
    'off',
    'one',
    'or',
    'our',
    'ounce',
    'ounces',
    'out',
    'oz',
    'pcs',
    'per',
    'piece',
    'pieces',
    'plus',
    'set',
    'size',
    'sure',
    'that',
    'the',
    'them',
    'this',
    'two',
    'up',
    'use',
    'very',
    'when',
    'x',
    'you',
    'your',
  ]
)
# Words that are not the product but hold it: "pack of soap", "asst box of tea".
_HOLDERS = frozenset(
  [
    'ass',
    'assorted',
    'asst',
    'asstd',
    'box',
    'bundle',
    'case',
    'kit',
    'pack',
    'pair',
    'set',
  ]
)
# Words that often end a title and seldom name the product.
_LOOKS = frozenset(
  [
    'assorted',
    'beige',
    'big',
    'black',
    'blue',
    'brown',
    'clear',
    'color',
    'colour',
    'dark',
    'finish',
    'gold',
    'gray',
    'green',
    'grey',
    'ivory',
    'large',
    'light',
    'lilac',
    'long',
    'medium',
    'orange',
    'pack',
    'pink',
    'purple',
    'red',
    'round',
    'set',
    'short',
    'silver',
    'small',
    'tall',
    'turquoise',
    'violet',
    'white',
    'yellow',
  ]
)
# Crowd segments and the words of a title or category that speak of them.
_SEGMENTS = {
  "women's things": "her ladies lady women women's womens 女士 女装 女式",
  "men's things": "him men men's mens 男士 男装 男式",
  "children's things": 'babies baby boys child children '
  "children's girls kids kid teen toddler toys 儿童 宝宝 婴儿",
  'gifts': 'anniversary birthday christmas easter gift gifts party present '
  'presents valentine wedding xmas 礼品 礼物 生日',
  'organic products': 'eco natural nature organic organics vegan 天然 有机',
  'professional products': 'pro professional salon 专业',
  'vintage style': 'antique classic retro retrospot vintage 复古',
  'things for the home': (
    'bathroom bedroom decoration garden home kitchen 家居 厨房'
  ),
  'things for pets': 'cat cats dog dogs pet pets 宠物',
}
_SEGMENT_OF = {
  word: name for name, words in _SEGMENTS.items() for word in words.split()
}


class Item(NamedTuple):
  """An item in words that facets are made of.

  Attributes:
    words: keywords of the title and their weights; none of the brand's words.
    kind: the finest category, or the product type that the title ends with.
    group: what the kind belongs to: the first category level that not all
      items share, or the last word of the product type.
    path: kind with the levels above it.
    product: the product type that the title ends with.
    brand: as it stands in the table.
    segments: crowds that the title or the category speaks of.
  """

  words: list[tuple[str, float]]
  kind: str
  group: str
  path: str
  product: str
  brand: str
  segments: tuple[str, ...]


def describe_items(
  titles: Iterable[str], categories: Iterable[str], brands: Iterable[str]
) -> list[Item]:
  """Reads the item table.

  A word weighs `log((N + 1) / df) df / (df + 2)`, `df` of the `N` titles having
  it: most if it is rare in the catalogue, but not so rare that no other item
  shares it, as a model number is.

  Args:
    titles, categories, brands: str[num_items + 1], row 0 is padding.

  Returns:
    One item a row.
  """
  # Titles of some catalogues are escaped twice.
  titles = [html.unescape(html.unescape(text)) for text in titles]
  brands = [' '.join(html.unescape(text).split()) for text in brands]
  tokens = [_tokens(text) for text in titles]
  levels = category_levels(categories)
  frequency = collections.Counter(
    itertools.chain.from_iterable(map(set, tokens))
  )
  weight = {
    word: math.log((len(titles) + 1) / count) * count / (count + 2)
    for word, count in frequency.items()
  }

  own = [set(_tokens(text)) for text in brands]
  products = _products(titles, own, frequency)
  return [
    _item(*row, weight)
    for row in zip(tokens, levels, brands, own, products, strict=True)
  ]


def _item(
  tokens: list[str],
  levels: list[str],
  brand: str,
  own: set[str],
  product: str,
  weight: dict[str, float],
) -> Item:
  """Puts together what is known of an item.

  Args:
    tokens: of the title.
    levels: of the category, the coarsest first.
    brand: as it stands in the table.
    own: words of the brand.
    product: the product type that the title ends with.
    weight: how telling each word of the catalogue is.
  """
  words = [
    (word, weight[word])
    for word in dict.fromkeys(tokens)
    if word not in own
    and word not in _FILLERS
    and not word[0].isdigit()
    and len(word) > 1
  ]
  if levels:
    kind, group = levels[-1], levels[0]
    above = ', '.join(levels[:-1][:2])
    path = f'{kind} ({above})' if above else kind
  else:
    kind = path = product
    group = product.split(' ')[-1]

  spoken = tokens + _tokens(' '.join(levels))
  segments = tuple(
    dict.fromkeys(_SEGMENT_OF[word] for word in spoken if word in _SEGMENT_OF)
  )
  return Item(
    words=words,
    kind=kind,
    group=group,
    path=path,
    product=product,
    brand=brand,
    segments=segments,
  )


def _tokens(text: str) -> list[str]:
  """Lower-case words; runs of Han characters as overlapping pairs."""
  out = []
  for token in _TOKEN.findall(text.lower()):
    han = _HAN.findall(token)
    if not han:
      out.append(token)
      continue
    for run in han:
      out += [run[i : i + 2] for i in range(max(len(run) - 1, 1))]
    out += _TOKEN.findall(_HAN.sub(' ', token))
  return out


def _products(
  titles: list[str], own: list[set[str]], frequency: dict[str, int]
) -> list[str]:
  """The product type in each title, one or two words, '' if none.

  The head noun is the word that ends most other titles and seldom stands
  elsewhere: `BISCUIT TIN VINTAGE CHRISTMAS` is a biscuit tin. In Chinese it
  is the last four characters.
  """
  naming = [_naming_words(*row) for row in zip(titles, own)]
  plain = [
    [word for word in words if word not in _LOOKS and word not in _SEGMENT_OF]
    or words
    for words in naming
  ]
  ends = collections.Counter(words[-1] for words in plain if words)

  def product(words: list[str], heads: list[str]) -> str:
    if not words:
      return ''
    if han := _HAN.findall(words[-1]):
      return han[-1][-4:]
    # Of equals the last, since English puts the head noun last.
    head = max(
      reversed(heads), key=lambda word: ends[word] ** 2 / frequency.get(word, 1)
    )
    at = words.index(head)
    return ' '.join(words[max(at - 1, 0) : at + 1])

  return [product(*row) for row in zip(naming, plain)]


def _naming_words(title: str, own: set[str]) -> list[str]:
  """The words that name the product, without brand, amounts and fillers."""
  for phrase in _CUT.split(title.lower()):
    kept: list[str] = []
    for word in _TOKEN.findall(phrase):
      if word in _LINKS and not _HOLDERS.issuperset(kept):
        break
      if word in _LINKS:
        kept = []  # only holders so far: the product follows
      elif word not in own and word not in _FILLERS and not word[0].isdigit():
        kept.append(word)
    if kept:
      return kept
  return []


def category_levels(categories: Iterable[str]) -> list[list[str]]:
  """Levels of each category, without a root that every item shares."""
  levels = [_split(html.unescape(text)) for text in categories]
  roots = {path[0] for path in levels if path}
  if len(roots) == 1 and any(len(path) > 1 for path in levels):
    levels = [path[1:] or path for path in levels]
  return levels


def _split(category: str) -> list[str]:
  """`A > B`, `A|B`, `A/B`, `A, B` and `'A', "B"` are all two levels."""
  quoted = _QUOTED.findall(category)
  if category.lstrip(' [')[:1] in ('"', "'") and quoted:
    names = [a or b for a, b in quoted]
  else:
    mark = next((mark for mark in _LEVELS if mark in category), '>')
    names = category.split(mark)
  return [' '.join(name.split()) for name in names if name.strip()]
