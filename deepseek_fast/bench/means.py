"""Geometric means over lists of rows: how near the ceiling, and our time over each peer's."""

import math
from collections.abc import Sequence
from typing import Any

from deepseek_fast.cli import output

HEADER = ("geometric mean", "rows", "of ceiling")
LEGEND = "of each list: our share of the ceiling, our time over a peer's in the rows that it has, below 1 is faster"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each group of rows, a column for each peer; "" where no row has a group."""
    groups = dict.fromkeys(row["group"] for row in rows if row.get("group"))
    members = {group: [row for row in rows if row.get("group") == group] for group in groups}
    labels = dict.fromkeys(label for row in rows if row.get("group") for label in row["peers"])
    lines = []
    for group, of in members.items():
        cells = [group, str(len(of)), f"{_mean([row['share_of_ceiling'] for row in of]):.0%}"]
        for label in labels:
            ratios = [row["peers"][label]["time_ratio"] for row in of if right(row, label)]
            missing = f" ({len(ratios)})" if 0 < len(ratios) < len(of) else ""
            cells.append(f"{_mean(ratios):.2f}{missing}" if ratios else "")
        lines.append(cells)
    return output.table((*HEADER, *labels), lines) if lines else ""


def right(row: dict[str, Any], label: str) -> bool:
    """Whether a row has a right answer of a peer."""
    return bool(label in row["peers"] and row["peers"][label]["right"])


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
