"""Geometric means over lists of rows: how near the ceiling, and our time over each library's fastest answer."""

import math
from collections.abc import Sequence
from typing import Any

from deepseek_fast.cli import output

HEADER = ("geometric mean", "rows", "of ceiling")
LEGEND = (
    "of each list: our share of the ceiling; our time over the fastest right answer of a library: below 1 is faster;\n"
    "in brackets: of how many rows, if not of all"
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each group of rows, a column for each library; "" where no row has a group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("group"):
            groups.setdefault(row["group"], []).append(row)
    libraries = dict.fromkeys(library(label) for of in groups.values() for row in of for label in row["peers"])
    lines = []
    for group, of in groups.items():
        cells = [group, str(len(of)), f"{_mean([row['share_of_ceiling'] for row in of]):.0%}"]
        for name in libraries:
            ratios = [ratio for row in of if (ratio := _ratio(row, name)) is not None]
            some = f" ({len(ratios)})" if len(ratios) < len(of) else ""
            cells.append(f"{_mean(ratios):.2f}{some}" if ratios else "")
        lines.append(cells)
    return output.table((*HEADER, *libraries), lines) if lines else ""


def library(label: str) -> str:
    """A peer's label begins with it: "ORT Conv, blocked"."""
    return label.split()[0].rstrip(",")


def _ratio(row: dict[str, Any], name: str) -> float | None:
    """Our time over the fastest right answer of a library; None where it has none."""
    found = [peer for label, peer in row["peers"].items() if library(label) == name and peer["right"]]
    return max((peer["time_ratio"] for peer in found), default=None)


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
