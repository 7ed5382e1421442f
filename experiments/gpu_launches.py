"""What a compiled GPU program launches, from the thunks that XLA dumps.

A thunk is a thing that the host does: start a kernel or a copy, run a loop,
launch a CUDA graph. A step on a GPU takes as long as its thunks are many,
where the kernels are small.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import NamedTuple

from experiments.program_text import Instruction
from experiments.program_text import Program

_THUNK = re.compile(r'^(\s*)(\d+): k(\w+)')
_LABEL = re.compile(r'^\s*(\w+):\s*$')
_INFO = re.compile(
  r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)', re.MULTILINE
)

_KERNELS = frozenset(
  [
    'Kernel',
    'CustomKernel',
    'TritonKernel',
    'Gemm',
    'CublasLtMatmul',
    'CubSort',
    'CustomCall',
    'Convolution',
    'Conv',
    'Cudnn',
    'Fft',
    'Cholesky',
    'TriangularSolve',
    'SelectK',
  ]
)
_COPIES = frozenset(
  ['Copy', 'Memzero', 'Memset32BitValue', 'MemzeroThunk', 'DeviceToDeviceCopy']
)
_GROUPS = frozenset(['Sequential', 'DynamicSliceFusion', 'DynamicSlice'])

# Kernels that walk the rounds of the ordered update (kernels/chain_kernel.py).
_IN_ROUNDS = re.compile(r'op_name="[^"]*(forward|backward)_rows/pallas_call"')

# Of a card of that kind, said on the page that is made of them.
LAUNCH_US = 3.0  # a kernel or copy that the host starts
IN_GRAPH_US = 1.3  # one that a CUDA graph starts (see SOURCE)
SYNC_US = 9.0  # the host waits for a value of the device
BYTES_PER_US = 3.35e6
SOURCE = (
  'measured on an H100 by Hazy Research, "Look Ma, No Bubbles!", May 2025'
)


@dataclasses.dataclass
class Thunk:
  """A thunk and those in it.

  Attributes:
    kind: as XLA says, without the k.
    instruction: its name in the program's text; '' where the dump has none.
    parts: of a loop 'condition' and 'body', of a conditional its branches, of
      a graph 'body'.
  """

  kind: str
  instruction: str
  parts: dict[str, list['Thunk']]


class Cost(NamedTuple):
  """What a step launches; means, where a loop's rounds depend on the data.

  Attributes:
    kernels: kernels and copies outside of loops.
    in_loops: kernels and copies that loops start.
    rounds: of a kernel that goes through the rounds of the ordered update, all
      but the first; each is counted as a launch.
    in_graphs: how many of all those a CUDA graph starts.
    graphs: launches of CUDA graphs.
    syncs: how often the host waits for a value of the device.
    microseconds: by the model of times in which a launch within a graph is
      cheaper, and bytes take their time.
  """

  kernels: float = 0.0
  in_loops: float = 0.0
  rounds: float = 0.0
  in_graphs: float = 0.0
  graphs: float = 0.0
  syncs: float = 0.0
  microseconds: float = 0.0

  @property
  def launches(self) -> float:
    """All kernels and copies."""
    return self.kernels + self.in_loops + self.rounds

  @property
  def plain_microseconds(self) -> float:
    """By the plain model: each launch costs the same, and each sync."""
    return LAUNCH_US * self.launches + SYNC_US * self.syncs

  def __add__(self, other: 'Cost') -> 'Cost':  # type: ignore[override]
    return Cost(*map(sum, zip(self, other)))

  def times(self, count: float) -> 'Cost':
    """So often."""
    return Cost(*(count * x for x in self))


def parse(sequence: str, metadata: str) -> list[Thunk]:
  """The thunks of a program.

  Args:
    sequence: XLA's dump `thunk_sequence_after_thunk_passes.txt`.
    metadata: its dump `thunk_metadata.txt`.
  """
  names = {int(n): name for name, n in _INFO.findall(metadata)}
  root = Thunk('Sequential', '', {'body': []})
  open_thunks = [(-1, root)]
  label = None
  for line in sequence.splitlines():
    if found := _LABEL.match(line):
      label = found[1]  # of the part that the next thunk begins
    if not (found := _THUNK.match(line)):
      continue

    indent, number, kind = len(found[1]), int(found[2]), found[3]
    while open_thunks[-1][0] >= indent:
      open_thunks.pop()
    parts = open_thunks[-1][1].parts
    part = label or next(reversed(parts), 'body')
    thunk = Thunk(kind, names.get(number, ''), {})
    parts.setdefault(part, []).append(thunk)
    open_thunks.append((indent, thunk))
    label = None
  return root.parts['body']


def cost_of_step(
  thunks: list[Thunk], program: Program, trips: Callable[[Instruction], float]
) -> Cost:
  """What one step launches: the body of the program's largest loop.

  Args:
    thunks: of the program.
    program: its text.
    trips: of a loop whose number of rounds the compiler does not know, or of a
      kernel that goes through the rounds of the ordered update.

  Raises:
    ValueError: if no loop is found, or a kind of thunk is not known.
  """
  loops = [t for t in thunks if t.kind == 'While']
  step = max(loops, key=lambda loop: _count(loop.parts['body']), default=None)
  if step is None:
    raise ValueError('the program has no loop over steps')
  return _Counter(program, trips).of_all(step.parts['body'])


def _count(thunks: list[Thunk]) -> int:
  return sum(1 + sum(map(_count, t.parts.values())) for t in thunks)


class _Counter:
  """Adds up what thunks launch.

  Args:
    program: the text.
    trips: as of `cost_of_step`.
  """

  def __init__(
    self, program: Program, trips: Callable[[Instruction], float]
  ) -> None:
    self._program, self._trips = program, trips

  def of_all(self, thunks: list[Thunk], in_graph: bool = False) -> Cost:
    """The sum over some thunks."""
    total = Cost()
    for thunk in thunks:
      total += self._of(thunk, in_graph)
    return total

  def _of(self, thunk: Thunk, in_graph: bool) -> Cost:
    parts = {k: self.of_all(v, in_graph) for k, v in thunk.parts.items()}
    if thunk.kind in _KERNELS or thunk.kind in _COPIES:
      return self._launch(thunk, in_graph)
    if thunk.kind in _GROUPS:
      return parts['body']
    if thunk.kind == 'CommandBuffer':
      inner = self.of_all(thunk.parts['body'], in_graph=True)
      return inner + Cost(graphs=1.0, microseconds=LAUNCH_US)
    if thunk.kind == 'While':
      return self._loop(thunk, parts['condition'], parts['body'], in_graph)
    if thunk.kind == 'Conditional':
      branch = max(parts.values(), key=lambda cost: cost.launches)
      return branch if in_graph else branch + _SYNC
    raise ValueError(f'no rule for thunks of kind {thunk.kind}')

  def _launch(self, thunk: Thunk, in_graph: bool) -> Cost:
    """A kernel or a copy: its start, and the time for its bytes."""
    instruction = self._program.instructions.get(thunk.instruction)
    moved = self._program.moved(thunk.instruction) if instruction else 0
    start = IN_GRAPH_US if in_graph else LAUNCH_US
    rounds = 0.0
    if instruction and _IN_ROUNDS.search(instruction.line):
      rounds = self._trips(instruction)
    return Cost(
      kernels=1.0,
      rounds=rounds,
      in_graphs=float(in_graph),
      microseconds=start + moved / BYTES_PER_US + LAUNCH_US * rounds,
    )

  def _loop(
    self, thunk: Thunk, condition: Cost, body: Cost, in_graph: bool
  ) -> Cost:
    """A loop; the host decides on each round whose number is not known."""
    instruction = self._program.instructions[thunk.instruction]
    if instruction.trips is not None:
      cost = body.times(instruction.trips)
    else:
      decision = condition if in_graph else condition + _SYNC
      trips = self._trips(instruction)
      cost = body.times(trips) + decision.times(trips + 1)
    return cost._replace(kernels=0.0, in_loops=cost.kernels + cost.in_loops)


_SYNC = Cost(syncs=1.0, microseconds=SYNC_US)
