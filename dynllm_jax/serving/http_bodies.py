"""Bodies of HTTP requests and answers, as OpenAPI describes them."""

from typing import Annotated
from typing import Any

from pydantic import BaseModel
from pydantic import BeforeValidator
from pydantic import ConfigDict
from pydantic import Discriminator
from pydantic import Field
from pydantic import StrictBool
from pydantic import StrictInt
from pydantic import StrictStr
from pydantic import Tag

from dynllm_jax.live.batches import MAX_ID_LENGTH
from dynllm_jax.serving.service import MAX_K

MAX_EVENTS = 10_000  # of a request
MAX_REQUESTS = 256  # of a batch
MAX_SESSION = 256  # events of a guest
_MAX_NAMES = 10_000
_MAX_TIME = 1 << 53

_NO_ZERO = r'^[^\x00]*$'
Id = Annotated[
  StrictStr,
  Field(
    min_length=1,
    max_length=MAX_ID_LENGTH,
    pattern=_NO_ZERO,
    description='An id as in the log.',
  ),
]
Text = Annotated[StrictStr, Field(max_length=10_000, pattern=_NO_ZERO)]
Names = Annotated[list[Id], Field(max_length=_MAX_NAMES)]


def _whole(value: Any) -> Any:
  """A number without a fraction is an integer to JSON, as 5.0 is."""
  is_whole = isinstance(value, float) and value.is_integer()
  return int(value) if is_whole else value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
Time = Annotated[
  Whole,
  Field(ge=0, le=_MAX_TIME, description='Unix seconds.'),
]
K = Annotated[Whole, Field(ge=1, le=MAX_K, description='How many items.')]


class Body(BaseModel):
  """A body with no other fields than its own."""

  model_config = ConfigDict(extra='forbid')


class Event(Body):
  """A user took an item at a time.

  An `id` of the client's makes it safe to send the event again: it counts once.
  """

  id: Id | None = None
  user: Id
  item: Id
  time: Time
  title: Text | None = None
  category: Text | None = None
  brand: Text | None = None


class Item(Body):
  """An item of the catalogue; a text that is not given stays as it is."""

  item: Id
  title: Text | None = None
  category: Text | None = None
  brand: Text | None = None


def _one_or_many(name: str) -> Discriminator:
  return Discriminator(lambda body: 'many' if isinstance(body, list) else name)


Events = Annotated[
  Annotated[Event, Tag('event')]
  | Annotated[
    list[Event], Field(min_length=1, max_length=MAX_EVENTS), Tag('many')
  ],
  _one_or_many('event'),
]
Items = Annotated[
  Annotated[Item, Tag('item')]
  | Annotated[
    list[Item], Field(min_length=1, max_length=MAX_EVENTS), Tag('many')
  ],
  _one_or_many('item'),
]


class Visit(Body):
  """An item that a guest took, and when."""

  item: Id
  time: Time


class Request(Body):
  """Who is to be recommended what: a user, or a guest with a session."""

  user: Id | None = None
  session: (
    Annotated[list[Visit], Field(min_length=1, max_length=MAX_SESSION)] | None
  ) = None
  k: K = 10
  time: Time | None = None
  exact: StrictBool = False
  exclude_seen: StrictBool = False
  candidates: Names | None = None
  categories: Names | None = None
  exclude: Names | None = None


class Requests(Body):
  """Several of them."""

  requests: Annotated[
    list[Request], Field(min_length=1, max_length=MAX_REQUESTS)
  ]


class Refused(BaseModel):
  """Why a request was refused; it changed nothing."""

  error: str


class Taken(BaseModel):
  """What became of events; they are in the journal."""

  events: int
  new_users: int
  new_items: int
  late: int
  repeats: int
  position: int


class Scored(BaseModel):
  """An item of an answer."""

  item: str
  score: float
  title: str


class Recommended(BaseModel):
  """The items that a user is likeliest to take next, the best first."""

  user: str
  known: bool
  items: list[Scored]


class RecommendedAll(BaseModel):
  """Answers in the order of the requests."""

  answers: list[Recommended]


class Likeness(BaseModel):
  """An item that is like another."""

  item: str
  cosine: float
  title: str


class Alike(BaseModel):
  """The items like an item, the most alike first."""

  item: str
  items: list[Likeness]


class Weighted(BaseModel):
  """An earlier purchase, and its part of a term."""

  item: str
  title: str
  time: int
  weight: float


class Walked(BaseModel):
  """A walk through another user, and its part of a term."""

  item: str
  title: str
  time: int
  through: str
  their_time: int
  then: int
  weight: float


class Facet(BaseModel):
  """A facet of the user, and what the network made of it."""

  name: str
  text: str
  attention: float
  dimensions: list[int]


class Explained(BaseModel):
  """The terms of a score, which sum to it, and what each rests on."""

  user: str
  item: str
  title: str
  time: int
  score: float
  terms: dict[str, float]
  copies: list[Weighted]
  walks: list[Walked]
  texts: list[Weighted]
  facets: list[Facet]
  latest: list[Weighted]


class Purchase(BaseModel):
  """An event of a user."""

  item: str
  title: str
  time: int


class User(BaseModel):
  """What is known of a user, the newest purchase first."""

  user: str
  known: bool
  purchases: list[Purchase]


class Found(BaseModel):
  """Ids that begin with what was asked for, with titles where there are any."""

  ids: list[str]
  titles: list[str]


class Health(BaseModel):
  """Whether the server works."""

  status: str


class Ready(Health):
  """It is ready.

  `position` is the number of batches of events that its state holds, `warm`
  whether nothing is left to compile, and `run` the name of its run folder.
  """

  position: int
  warm: bool
  run: str


class Changeover(Body):
  """To which run: the name of a folder beside the one that is served."""

  run: Annotated[
    StrictStr,
    Field(min_length=1, max_length=255, pattern=r'^[^/\\\x00]+$'),
  ]


class Changed(BaseModel):
  """The run that is served now, and the batches that its state holds."""

  run: str
  position: int


EVENT_EXAMPLES: list[Any] = [
  {'id': 'order 5', 'user': 'u17', 'item': 'b3', 'time': 1_700_000_000},
  [
    {'user': 'u17', 'item': 'b3', 'time': 1_700_000_000},
    {
      'user': 'guest-8',
      'item': 'b99',
      'time': 1_700_000_060,
      'title': 'Water glasses',
      'category': 'Kitchen',
      'brand': 'Klar',
    },
  ],
]
REQUEST_EXAMPLES: list[Any] = [
  {
    'requests': [
      {'user': 'u17', 'k': 5, 'exclude_seen': True},
      {'session': [{'item': 'b3', 'time': 1_700_000_000}], 'k': 5},
    ]
  }
]
CHANGEOVER_EXAMPLES: list[Any] = [{'run': 'shop2'}]
ITEM_EXAMPLES: list[Any] = [
  {
    'item': 'b99',
    'title': 'Water glasses',
    'category': 'Kitchen',
    'brand': 'Klar',
  }
]
