"""What the text of an optimized program says: instructions, loops, bytes.

XLA's own count of bytes has two flaws for programs here: a gather counts its
whole table, and a loop counts once. Here a gather counts what it takes out of
a table, a write in place what it writes, and padding of a layout counts too.
"""

from collections.abc import Callable
import functools
import math
import re
from typing import NamedTuple

_COMMENT = re.compile(r'/\*.*?\*/')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$')
_NAME = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_KIND = re.compile(r' ?([\w\-]+)\((.*)$')
_ARRAY = re.compile(
  r'\b(pred|bf16|[suf]\d+)\w*\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?'
)
_TILE = re.compile(r'T\((\d+(?:,\d+)*)\)')
_CALLED = re.compile(
  r'(?:calls|body|condition|to_apply|branch_computations|true_computation|'
  r'false_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ON_CHIP = '1'  # number of the memory space beside the cores of a TPU
_BITS = {'pred': 8, 'bf16': 16}

# They move nothing: names, or parts of what was there before.
_FREE = frozenset(
  [
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'while',
    'conditional',
    'call',
    'iota',
    'copy-done',
    'slice-done',
    'async-done',
    'opt-barrier',
    'add-dependency',
  ]
)
_PICKS = frozenset(['gather', 'dynamic-slice', 'slice'])  # parts of a table
_WRITES = {'scatter': 2, 'dynamic-update-slice': 1}  # in place; the operand
_SEES_THROUGH = frozenset(['bitcast', 'copy-done', 'get-tuple-element'])


class Instruction(NamedTuple):
  """One instruction of a computation.

  Attributes:
    name: unique in the program.
    kind: the operation, such as 'fusion'.
    result: its type as the text has it.
    operands: names of the instructions that it reads.
    line: the whole text.
    is_root: whether it is the computation's result.
  """

  name: str
  kind: str
  result: str
  operands: tuple[str, ...]
  line: str
  is_root: bool

  @property
  def bytes(self) -> int:
    """Of the result in memory, padding included."""
    return array_bytes(self.result)

  @property
  def called(self) -> list[str]:
    """Names of the computations that it runs."""
    found = []
    for several, one in _CALLED.findall(self.line):
      found += re.findall(r'[\w.\-]+', several) if several else [one]
    return found

  @property
  def trips(self) -> int | None:
    """Of a loop, where the compiler knows them."""
    found = _TRIPS.search(self.line)
    return int(found[1]) if found else None

  @property
  def origin(self) -> str:
    """Where in the traced program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.line)
    return found[1] if found else ''


def array_bytes(text: str) -> int:
  """Bytes of all arrays in a type, each padded to its layout's tiles."""
  return sum(_arrays(text, everywhere=False))


def _arrays(text: str, everywhere: bool) -> list[int]:
  """Bytes of each array in a type; `everywhere`, also in the chip's caches."""
  found = []
  for kind, dims, order, layout in _ARRAY.findall(text):
    space = re.search(r'S\((\d+)\)', layout or '')
    if space and (not everywhere or space[1] != _ON_CHIP):
      continue
    sizes = [int(n) for n in dims.split(',') if n]
    tile = _TILE.search(layout or '')
    if tile and order:
      # The tile's last number is for the dimension that varies fastest.
      by_speed = [int(n) for n in order.split(',')]
      for axis, step in zip(by_speed, reversed(tile[1].split(','))):
        sizes[axis] += -sizes[axis] % int(step)
    bits = _BITS.get(kind) or int(re.sub(r'\D', '', kind))
    found.append(math.prod(sizes) * bits // 8)
  return found


class Program:
  """The computations of an optimized program, by name.

  Args:
    text: as `compiled.as_text()` has it.
  """

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ''
    current = None
    for line in _COMMENT.sub('', text).splitlines():
      begins = _COMPUTATION.match(line)
      if begins:
        current = self.computations.setdefault(begins[2], [])
        self.entry = begins[2] if begins[1] else self.entry
      found = _NAME.match(line)
      if found and current is not None:
        current.append(_instruction(line, *found.groups()))
    self.instructions = {
      i.name: i for body in self.computations.values() for i in body
    }

  def step(self) -> str:
    """The computation that is one step: the body of the entry's largest loop.

    Raises:
      ValueError: if the program's entry has no loop.
    """
    bodies = [
      re.search(r'body=%?([\w.\-]+)', i.line)
      for i in self.computations[self.entry]
      if i.kind == 'while'
    ]
    return max(
      (found[1] for found in bodies if found),
      key=lambda name: len(self.computations[name]),
    )

  def moved(self, name: str) -> int:
    """Bytes that one instruction reads and writes, those it calls left out."""
    instruction = self.instructions[name]
    if instruction.kind in _FREE:
      return 0
    inner = self._fused(instruction)
    if inner is None:
      return self._moved_by(
        instruction, [self.instructions[o] for o in instruction.operands]
      )
    return self._moved_by_fusion(inner)

  def moved_by_all(
    self, computation: str, trips: Callable[[Instruction], float]
  ) -> float:
    """Bytes that a computation moves, loops as often as they run.

    Args:
      computation: its name.
      trips: of a loop whose number of rounds the compiler does not know.
    """
    total = 0.0
    for instruction in self.computations[computation]:
      inner = [c for c in instruction.called if c in self.computations]
      if instruction.kind == 'while':
        rounds = instruction.trips
        times = trips(instruction) if rounds is None else rounds
        total += times * sum(self.moved_by_all(c, trips) for c in inner)
      elif instruction.kind == 'conditional':
        total += max(self.moved_by_all(c, trips) for c in inner)
      elif instruction.kind == 'call':
        total += sum(self.moved_by_all(c, trips) for c in inner)
      else:
        total += self.moved(instruction.name)
    return total

  def _fused(self, instruction: Instruction) -> list[Instruction] | None:
    """The instructions of a fusion's computation."""
    if instruction.kind != 'fusion':
      return None
    return self.computations[instruction.called[0]]

  def _moved_by(
    self, instruction: Instruction, operands: list[Instruction]
  ) -> int:
    """Bytes of an instruction that stands alone."""
    if instruction.kind == 'copy-start':
      return instruction.bytes  # its type has source and destination
    if instruction.kind.endswith('slice-start'):
      return _arrays(instruction.result, everywhere=True)[-1]
    sizes = [o.bytes for o in operands]
    if instruction.kind in _PICKS:
      return 2 * instruction.bytes + sum(sizes[1:])
    if instruction.kind in _WRITES:
      at = _WRITES[instruction.kind]
      return sum(sizes[1:]) + sizes[at]
    return instruction.bytes + sum(sizes)

  def _moved_by_fusion(self, body: list[Instruction]) -> int:
    """Bytes that a fusion reads of its parameters and writes as its result."""
    by_name = {i.name: i for i in body}
    users: dict[str, list[Instruction]] = {i.name: [] for i in body}
    for instruction in body:
      for operand in instruction.operands:
        users.setdefault(operand, []).append(instruction)

    @functools.cache
    def read(name: str) -> int:
      """Bytes that are read of a value, at most all of it."""
      total = 0
      for user in users[name]:
        takes_part = user.operands and user.operands[0] == name
        if user.kind in _SEES_THROUGH:
          total += read(user.name)
        elif user.kind in _PICKS and takes_part:
          total += user.bytes
        elif user.kind in _WRITES and takes_part:
          total += 0
        else:
          return by_name[name].bytes
      return min(total, by_name[name].bytes)

    def written(instruction: Instruction) -> int:
      """Bytes that a result's making writes, and reads where it adds."""
      while instruction.kind in ('bitcast', 'convert') and (
        by_name[instruction.operands[0]].kind in _WRITES
      ):
        instruction = by_name[instruction.operands[0]]
      if instruction.kind == 'tuple':
        return sum(written(by_name[o]) for o in instruction.operands)
      if instruction.kind in _WRITES:
        return by_name[instruction.operands[_WRITES[instruction.kind]]].bytes
      return instruction.bytes

    return sum(read(i.name) for i in body if i.kind == 'parameter') + sum(
      written(i) for i in body if i.is_root
    )


def _instruction(
  line: str, root: str | None, name: str, rest: str
) -> Instruction:
  """An instruction from its line, and from what follows `name = `."""
  end = _closing(rest[1:]) + 2 if rest.startswith('(') else rest.index(' ')
  found = _KIND.match(rest[end:])
  assert found, line
  kind, after = found.groups()
  operands = re.findall(r'%([\w.\-]+)', after[: _closing(after)])
  return Instruction(name, kind, rest[:end], tuple(operands), line, bool(root))


def _closing(text: str) -> int:
  """Where the bracket stands that closes one before the text's beginning."""
  depth = 1
  for place, letter in enumerate(text):
    depth += (letter in '([{') - (letter in ')]}')
    if not depth:
      return place
  return len(text)
