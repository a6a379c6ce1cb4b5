"""The tables of the nine convolutional networks: ours beside the faster of ONNX Runtime and OpenVINO, and the floor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.networks.contestants import NETWORKS, OPENVINO, OPENVINO_BF16, OURS_BF16, OURS_FP32, OURS_STOCK, STOCK
from deepseek_fast.cli import output

LEGEND = """\
ms: best round, one image, one thread, all in turn. floor: the operations of all convolutions and products at this
machine's rate of FMA, or of bf16 dots, measured beside them. x faster: ours over the faster one: below 1 is ours; last
row: geometric means. no library: whether our file is right in ORT without our library, too. Right: within 1e-4 of
float64's answer, in bf16 0.2 (random weights amplify its roundings)."""


@dataclass(frozen=True)
class Kind:
    """A table: the title of its first column, the ceiling, and contestants by column; ours last."""

    title: str
    rate: str
    others: dict[str, str]
    ours: str | None = None
    stock: str | None = None  # our file without our library

    @property
    def columns(self) -> dict[str, str]:
        return self.others | ({"ours": self.ours} if self.ours else {})


KINDS = (
    Kind("f32, ms", "fma_f32", {"ORT": STOCK, "OpenVINO": OPENVINO}, OURS_FP32, OURS_STOCK),
    Kind("bf16, ms", "bf16_dot", {"OpenVINO": OPENVINO_BF16}, OURS_BF16),
)


def table(data: dict[str, Any], kinds: Sequence[Kind] = KINDS) -> str:
    """A row for each light network that has rows, in every precision of kinds; "" where there is none."""
    return "\n\n".join(filter(None, (_table(data, kind) for kind in kinds)))


def _table(data: dict[str, Any], kind: Kind) -> str:
    lines, ratios, shares = [], [], []
    for network in NETWORKS.values():
        rows = {
            row["contestant"]: row
            for row in data["rows"]
            if row["network"] == network.name and (row["threads"], row["batch"]) == (1, network.batch)
        }
        if not network.light or not rows.keys() & set(kind.columns.values()):
            continue
        flops, rates = _fact(data, network.name, "flops"), _fact(data, network.name, "rates") or {}
        floor = 1e3 * (flops or math.nan) / rates.get(kind.rate, math.nan)
        times = {name: row["ms_min"] for name, row in rows.items() if row["right"]}
        ours = times.get(kind.ours or "", math.nan)
        faster = min((times[name] for name in kind.others.values() if name in times), default=math.nan)
        ratios.append(ours / faster)
        shares.append(floor / ours)
        cells = ["" if flops is None else f"{flops / 1e9:.2f}", _number(floor)]
        cells += [_ms(rows.get(name)) for name in kind.columns.values()]
        if kind.ours:
            cells += [_number(ratios[-1]), _percent(shares[-1])]
        if kind.stock:
            cells.append({True: "right", False: "WRONG", None: ""}[rows.get(kind.stock, {}).get("right")])
        lines.append((network.name, *cells))
    if not lines:
        return ""
    header = [kind.title, "GFLOP", "floor", *kind.columns]
    means = ["geomean", *[""] * (len(header) - 1)]
    if kind.ours:
        header += ["x faster", "of floor"]
        means += [_number(_mean(ratios)), _percent(_mean(shares))]
        lines.append(tuple(means + [""] * bool(kind.stock)))
    return output.table([*header, *["no library"] * bool(kind.stock)], lines)


def _fact(data: dict[str, Any], network: str, key: str) -> Any:
    """What a run found out about a network; None of a run from before there were facts."""
    return next((one[key] for one in data.get("facts", ()) if one["network"] == network and key in one), None)


def _ms(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['ms_min']:.2f}" + ("" if row["right"] else " WRONG")


def _mean(values: Sequence[float]) -> float:
    """Geometric, of those that there are."""
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
