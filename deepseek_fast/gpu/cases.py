"""What a room's gpu_cases.py lists: calls to compile ahead of time, what their code must have, and rows to measure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A call of an op as its launcher gets it; arguments() runs with tensors of device "meta"."""

    name: str
    op: str
    arguments: Callable[[], tuple[Any, ...]]
    named: Callable[[], dict[str, Any]] = dict
    archs: tuple[int, ...] | None = None  # None: all


def _never(constants: dict[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class Expect:
    """What a kernel's machine code must have: tensor-core products, copies that do not wait (cp.async or TMA).

    warpgroups: of which variants, by their constants, the products must be wgmma on 9.0 and tcgen05 on 10.0.
    """

    tensor_cores: bool = False
    async_copies: bool = False
    warpgroups: Callable[[dict[str, Any]], bool] = _never
    max_bytes: int = 128 * 1024  # of a cubin: a kernel beyond is unrolled by mistake


@dataclass(frozen=True)
class Peer:
    """What people use today. prepare(inputs) gives a function of no arguments, whose calls alone are timed.

    It imports what it needs; ImportError or RuntimeError leaves the peer out, with the reason in the row.
    """

    name: str
    prepare: Callable[[dict[str, Any]], Callable[[], Any]]


@dataclass(frozen=True)
class Goal:
    """At least `ratio` times the copy bandwidth ("copy"), the bf16 product rate ("product"), or a peer's speed."""

    ratio: float
    of: str


@dataclass(frozen=True)
class Bench:
    """A row of `bench/gpu`: inputs() runs on the GPU with fresh random numbers, ours(**inputs) is timed.

    error(inputs, result) compares with float64, of some rows or heads where all would take long, and gives the largest
    error over its bound (or calc_diff over its limit): right where at most 1; 0 for equal bits.
    bytes, flops: what a call must move from and to memory, and compute.
    """

    name: str
    inputs: Callable[[], dict[str, Any]]
    ours: Callable[..., Any]
    error: Callable[[dict[str, Any], Any], float]
    bytes: int
    flops: int
    peers: tuple[Peer, ...] = ()
    goal: Goal | None = None
