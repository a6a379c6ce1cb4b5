"""The text of objdump as functions, and a function's innermost loops."""

import functools
import itertools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER = re.compile(r"^[0-9a-f]+ <(.+)>:$")
LINE = re.compile(r"^ *([0-9a-f]+):\t(?:(?:lock|rep\w*|data16|notrack|bnd|cs|ds) +)*((?:\{e?vex\} )?\S+) *(.*)$")
OPERAND = re.compile(r"(?:[^,(]|\([^)]*\))+")
REGISTER = re.compile(r"%([txyz]mm)\d")
NO_ACCESS = ("lea", "nop")  # their parentheses read and write nothing
ENDS_BLOCK = ("j", "ret", "ud2")
NO_FALL_THROUGH = ("jmp", "ret", "ud2")


@dataclass(frozen=True)
class Instruction:
    """One line; operands in AT&T order, the destination last."""

    address: int
    name: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {','.join(self.operands)}"

    @property
    def destination(self) -> str:
        return self.operands[-1].split("{")[0] if self.operands else ""

    @property
    def registers(self) -> str | None:
        """Kind of the destination: "xmm", "ymm", "zmm", "tmm", or None where it is no vector or tile register."""
        match = REGISTER.match(self.destination)
        return match[1] if match else None

    @property
    def reads(self) -> bool:
        """Takes a value from memory into a register or a comparison."""
        memory = ["(" in operand for operand in self.operands]
        if self.name.startswith("cmp"):
            return any(memory)
        return any(memory[:-1]) and not self.name.startswith(NO_ACCESS)

    def uses(self, registers: tuple[str, ...]) -> bool:
        """Accesses memory at one of the registers."""
        if self.name.startswith(NO_ACCESS):
            return False
        at = any(f"({register}" in operand for operand in self.operands for register in registers)
        return at or self.name.startswith(("push", "pop"))


@dataclass(frozen=True)
class Function:
    name: str
    lines: tuple[str, ...]

    @functools.cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """Parsed where they are asked for: of an object's functions few are looked into."""
        return tuple(_instruction(match) for line in self.lines if (match := LINE.match(line)))

    @property
    def stack_registers(self) -> tuple[str, ...]:
        """%rbp is one where the function says so, else a register like any other."""
        framed = any(one.name == "mov" and one.operands == ("%rsp", "%rbp") for one in self.instructions)
        return ("%rsp", "%rbp") if framed else ("%rsp",)


def disassemble(path: Path) -> tuple[Function, ...]:
    """An object's functions."""
    command = ("objdump", "-d", "-C", "-w", "--no-show-raw-insn", str(path))
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(text: str) -> tuple[Function, ...]:
    """The output of `objdump -d -C -w --no-show-raw-insn`."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if match := HEADER.match(line):
            found.append((match[1], []))
        elif found:
            found[-1][1].append(line)
    return tuple(Function(name, tuple(lines)) for name, lines in found if any(map(LINE.match, lines)))


def _instruction(line: re.Match[str]) -> Instruction:
    operands = line[3].split(" <")[0].split("#")[0].strip()
    return Instruction(int(line[1], 16), line[2], tuple(OPERAND.findall(operands)))


def inner_loops(function: Function, *, calls: bool = True) -> list[tuple[Instruction, ...]]:
    """The loops that hold no other loop, each from its lowest address; calls=False: without the paths that call."""
    blocks = _blocks(function)
    if not calls:
        blocks = {start: block for start, block in blocks.items() if not any(one.name == "call" for one in block)}
    starts = sorted(blocks)
    following = dict(itertools.pairwise(starts))
    edges = {start: _next(blocks[start][-1], following.get(start)) & blocks.keys() for start in starts}
    loops = sorted(sorted(nodes) for nodes in _innermost(set(starts), edges))
    return [tuple(one for start in nodes for one in blocks[start]) for nodes in loops]


def _blocks(function: Function) -> dict[int, list[Instruction]]:
    """Straight runs of instructions, by their first address."""
    targets = {_target(one) for one in function.instructions}
    blocks: dict[int, list[Instruction]] = {}
    block: list[Instruction] = []
    for one in function.instructions:
        if not block or one.address in targets:
            block = blocks[one.address] = []
        block.append(one)
        if one.name.startswith(ENDS_BLOCK):
            block = []
    return blocks


def _target(one: Instruction) -> int | None:
    """Where a direct jump goes."""
    if not one.name.startswith("j") or not re.fullmatch("[0-9a-f]+", one.operands[0]):
        return None
    return int(one.operands[0], 16)


def _next(last: Instruction, following: int | None) -> set[int]:
    """Where a block's last instruction leads."""
    reached = {_target(last), None if last.name.startswith(NO_FALL_THROUGH) else following}
    return {address for address in reached if address is not None}


def _innermost(nodes: set[int], edges: dict[int, set[int]]) -> Iterator[set[int]]:
    """Strongly connected parts; without its entry such a part falls apart into the loops inside it."""
    backward: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for target in edges[node] & nodes:
            backward[target].add(node)
    left = set(nodes)
    while left:
        node = min(left)
        part = _reached(node, edges, nodes) & _reached(node, backward, nodes)
        left -= part | {node}
        if part:
            entries = [start for start in part if any(start in edges[other] for other in edges.keys() - part)]
            yield from list(_innermost(part - {min(entries, default=node)}, edges)) or [part]


def _reached(node: int, edges: dict[int, set[int]], nodes: set[int]) -> set[int]:
    """Every node that a path of at least one edge leads to."""
    found: set[int] = set()
    left = [node]
    while left:
        for target in (edges[left.pop()] & nodes) - found:
            found.add(target)
            left.append(target)
    return found
