"""The roofline as a figure: what calls reach over what they compute for each byte, below the machine's ceilings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek_fast.bench.plots import OURS, OURS_SYMBOL, PLAIN, Figure, Palette, escaped, hover_text, layout

HEIGHT_PX = 440
LINES = "#8c8f94"


@dataclass(frozen=True)
class Point:
    """A call in the roofline."""

    intensity: float  # flops a byte
    gflops: float
    hover: Sequence[str]


def roofline(
    ours: Sequence[Point], peers: Mapping[str, Sequence[Point]], ceilings: dict[str, Any], palette: Palette
) -> Figure:
    """GFLOP/s over flops a byte: the probed roofs, and calls as points."""
    points = [*ours, *(point for of in peers.values() for point in of)]
    roofs = {name: rate["per_second"] / 1e9 for name, rate in ceilings["rates"].items()}
    slopes = {level: rate / 1e9 for level, rate in ceilings["read"].items()}
    top = max(roofs.values())
    least = min((point.intensity for point in points), default=1.0)
    left = min(least, min(roofs.values()) / max(slopes.values())) / 2
    # A free stretch to the right of the last point, where the roofs have their names.
    right = max((point.intensity for point in points), default=1.0) * 12
    low = min([left * min(slopes.values()), *(point.gflops / 2 for point in points)])
    data, remarks = [], []
    for level, slope in slopes.items():
        data.append(_line([left, top / slope], [left * slope, top], "dot"))
        start = left * 1.6
        remarks.append(_label(start, start * slope, escaped(level)))
    for name, roof in roofs.items():
        data.append(_line([roof / max(slopes.values()), right], [roof, roof], "solid"))
        remarks.append(_label(right, roof, escaped(f"{name} {roof:.0f}"), xanchor="right", yanchor="bottom"))
    # Ours below and larger: a peer on the same spot leaves a ring of it.
    data.append(_points(ours, "ours", OURS, OURS_SYMBOL[0], 14))
    for label, of in peers.items():
        data.append(_points(of, escaped(label), palette.colour(label), palette.symbol(label), 8))
    frame = layout(HEIGHT_PX)
    frame["margin"]["t"] = 12
    frame["xaxis"] |= {
        "type": "log",
        "range": [math.log10(left), math.log10(right)],
        "title": {"text": "flops / byte"},
        "dtick": 1,
    }
    frame["yaxis"] |= {
        "type": "log",
        "range": [math.log10(low), math.log10(top * 2)],
        "title": {"text": "GFLOP/s"},
        "dtick": 1,
    }
    frame["annotations"] = remarks
    return {"data": data, "layout": frame}


def _label(x: float, y: float, text: str, **anchor: str) -> dict[str, Any]:
    """A name on a line of the roofline; on a logarithmic axis annotations take logarithms."""
    return {"x": math.log10(x), "y": math.log10(y), "text": text} | PLAIN | anchor


def _line(x: list[float], y: list[float], dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": LINES, "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
    }


def _points(points: Sequence[Point], name: str, colour: str, symbol: str, size: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.intensity for point in points],
        "y": [point.gflops for point in points],
        "marker": {"color": colour, "symbol": symbol, "size": size},
        "customdata": [hover_text(point.hover) for point in points],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
