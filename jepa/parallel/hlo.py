"""Reads compiled programs: what runs how often, what crosses devices, what goes through memory.

A compiled program says a loop's body once, however often it runs, and so does every count that is
made of it without its loops (`compiled.cost_analysis()` is one). Here the bodies of loops count as
often as they run, which the condition of a loop over layers or micro-batches tells.

What is read is the text of the optimized program, `compiled.as_text()`, of one device of many that
all run it. `jepa.parallel.traffic` counts in it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations|called_computations)=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INTEGER = re.compile(r"\bconstant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that a program names.

    Attributes:
      dtype: such as "bf16".
      shape: its dimensions.
      layout: as written: the order of dimensions, tiles, memory space.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def width(self) -> float:
        """Bytes of an element."""
        if self.dtype in _BYTES:
            return _BYTES[self.dtype]
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) / 8 if bits else 0

    @property
    def bytes(self) -> float:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.width

    @property
    def in_memory(self) -> bool:
        """Whether it lies in the device's main memory, not in one of a TensorCore's own."""
        return "S(" not in self.layout and self.dtype not in ("token", "opaque")

    @property
    def padded(self) -> float:
        """Bytes with the padding of its tiles: `T(8,128)` fills up the two innermost dimensions."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if tile is None or not self.shape:
            return self.bytes
        sizes = [self.shape[int(i)] for i in order.split(",")]
        for i, side in enumerate(reversed(tile[1].split(","))):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // int(side)) * int(side)
        return math.prod(sizes) * self.width


def arrays(text: str) -> list[Array]:
    """Returns the arrays of a type, which is one of them or a tuple."""
    return [
        Array(dtype, tuple(int(d) for d in shape.split(",") if d), layout or "")
        for dtype, shape, layout in _ARRAY.findall(text)
    ]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program.

    Attributes:
      name: of what it makes, without the percent sign.
      type: of that, as written.
      opcode: what it does, such as "fusion".
      operands: names of what it reads.
      rest: the attributes behind the operands.
      arguments: what stands in the parentheses.
      root: whether it is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    arguments: str
    root: bool

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs; the condition of a loop is not among them."""
        return [name for match in _CALLED.finditer(self.rest) for name in self._named(match.end())]

    def _named(self, start: int) -> list[str]:
        if self.rest[start] != "{":
            return _NAME.findall(self.rest[start:].split(",", 1)[0])
        return _NAME.findall(self.rest[start : self.rest.index("}", start)])


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: instructions by name, by the name of their computation.
      entry: the name of the computation that is the program.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def types(self, computation: str, instruction: Instruction) -> list[list[Array]]:
        """Returns the arrays of each operand of an instruction."""
        inside = self.computations[computation]
        return [arrays(inside[name].type) for name in instruction.operands if name in inside]

    def runs(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields what is run: the computation it stands in, the instruction, how often it runs.

        What is inside of a fusion, or of the operation of a reduction, is not run by itself.
        """
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            for instruction in self.computations[name].values():
                yield name, instruction, times
                if instruction.opcode == "while":
                    pending += [
                        (body, times * self.trips(instruction)) for body in instruction.called
                    ]
                elif instruction.opcode in ("call", "conditional", "async-start"):
                    pending += [(body, times) for body in instruction.called]

    def trips(self, loop: Instruction) -> int:
        """Returns how often the body of a loop runs.

        Raises:
          ValueError: its condition compares with no constant.
        """
        known = _TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
        found = self._integers(condition[1]) if condition else []
        if not found:
            raise ValueError(f"the loop {loop.name} does not say how often it runs")
        return max(found)

    def _integers(self, computation: str) -> list[int]:
        """The whole constants that a loop's condition compares with."""
        found = []
        for instruction in self.computations[computation].values():
            if instruction.opcode == "constant" and re.match(r"[su](32|64)\[\]", instruction.type):
                found += [int(value) for value in re.findall(r"^\d+$", instruction.arguments)]
            for name in instruction.called:
                found += self._integers(name)
        return found


def parse(text: str) -> Program:
    """Reads the text of a compiled program.

    Raises:
      ValueError: it has no entry.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            made = _instruction(match[2], match[3], bool(match[1]))
            current[made.name] = made
    if not entry:
        raise ValueError("this text is no compiled program: it has no ENTRY")
    return Program(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    close = _closing(text, start)
    arguments = text[start + 1 : close]
    return Instruction(
        name=name,
        type=kind,
        opcode=text[:start],
        operands=tuple(_NAME.findall(arguments)),
        rest=text[close + 1 :],
        arguments=arguments,
        root=root,
    )


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")
