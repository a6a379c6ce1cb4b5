"""What verify found: plain data, and one readable table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Tolerances:
    """What an output must meet; None: not asked for. Of atol and rtol one is enough, min_cosine is asked as well."""

    atol: float | None  # largest |candidate - reference|
    rtol: float | None  # the same, divided by the largest |reference|
    min_cosine: float | None  # of the worst row (last axis)
    reason: str  # where the numbers come from


@dataclass(frozen=True)
class Difference:
    """How far a candidate's array is from the reference's; NaN or inf in different places count as inf and cosine 0."""

    max_abs: float
    relative: float  # max_abs / max |reference|
    cosine: float  # min over rows (last axis)
    ok: bool


@dataclass(frozen=True)
class OutputReport:
    """One output of one run: `runtime` is "library" or "stock"."""

    runtime: str
    batch_size: int | None  # None: the inputs were given
    name: str
    shape: tuple[int, ...]
    difference: Difference


@dataclass(frozen=True)
class Departure:
    """The first node, in the candidate's order, whose output is outside the tolerances."""

    node: str  # the node's name; where it has none, its output's
    op_type: str
    value: str  # the output that departs; the reference has a value of the same name
    runtime: str
    difference: Difference

    def __str__(self) -> str:
        found = f"max abs {self.difference.max_abs:.3g}, cosine {self.difference.cosine:.6f}"
        return f"{self.op_type} '{self.node}' (value '{self.value}', runtime {self.runtime}, {found})"


@dataclass(frozen=True)
class Report:
    """The result of verify: `ok` says whether structure and every output hold."""

    outputs: tuple[OutputReport, ...]
    problems: tuple[str, ...]  # what is wrong with the structure, or did not run, in sentences
    tolerances: Tolerances
    first_departure: Departure | None = None

    @property
    def ok(self) -> bool:
        return not self.problems and bool(self.outputs) and all(o.difference.ok for o in self.outputs)

    def to_dict(self) -> dict[str, object]:
        """Everything, in types that json knows (NaN and inf as strings)."""
        return {"ok": self.ok, **_plain(asdict(self))}

    def __str__(self) -> str:
        head = ("runtime", "batch", "output", "shape", "max abs", "relative", "cosine", "")
        rows = [head, *(_row(output) for output in self.outputs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.first_departure is not None:
            lines.append(f"first departure: {self.first_departure}")
        limits = {"atol": self.tolerances.atol, "rtol": self.tolerances.rtol, "min_cosine": self.tolerances.min_cosine}
        asked = ", ".join(f"{name} {value:.3g}" for name, value in limits.items() if value is not None)
        lines.append(f"{'ok' if self.ok else 'FAILED'} ({asked}: {self.tolerances.reason})")
        return "\n".join(lines)


def _row(output: OutputReport) -> tuple[str, ...]:
    d = output.difference
    batch = "given" if output.batch_size is None else str(output.batch_size)
    shape = "x".join(map(str, output.shape)) or "scalar"
    numbers = (f"{d.max_abs:.3g}", f"{d.relative:.3g}", f"{d.cosine:.7f}")
    return (output.runtime, batch, output.name, shape, *numbers, "ok" if d.ok else "DEPARTS")


def _plain(value: object) -> dict[str, object]:
    def convert(item: object) -> object:
        if isinstance(item, dict):
            return {key: convert(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [convert(inner) for inner in item]
        if isinstance(item, float) and not math.isfinite(item):
            return str(item)
        return item

    converted = convert(value)
    assert isinstance(converted, dict)
    return converted
