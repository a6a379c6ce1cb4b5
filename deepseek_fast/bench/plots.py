"""Figures of the HTML page, as plotly.js data and layout: what all share, and bars in groups under headings.

Every figure is a plain dict, so that plotly itself is needed only where the page is put together. Texts in a figure are
pseudo-HTML to plotly.js: whatever comes from a run goes through `escaped`.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

OURS = "#1a6fd4"  # ours everywhere; the peers' colours stay clear of blue, also to colour-blind eyes
OURS_SYMBOL = ("circle", "●")
PEERS = ("#8c8f94", "#3fa294", "#c8a13c", "#cc6677", "#999933", "#a35b9e", "#5c8a4a", "#9a6a45", "#882255")
# (plotly's name, the same sign in a text); eight beside nine colours: 72 peers before a pair comes again.
SYMBOLS = (
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("star", "★"),
    ("cross", "✚"),
    ("hexagon", "⬢"),
    ("pentagon", "⬟"),
)
SLOT_PX = 19  # of a bar or a heading
FONT_PX = 13
CHAR_PX = 7.6  # of a character at FONT_PX in the widest usual fonts
PHONE_PX = 332  # of a figure without its margins, where the window has 390
LINE = 42  # characters that PHONE_PX has room for
GAP = 0.6  # slots between two groups
MAX_RATIO = 10
RATIO_CHARS = 8  # of the longest text at a ratio's bar, sign and arrow included
TICKS, WIDE_TICKS = (0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 4), (0.1, 0.2, 0.5, 1, 2, 5, 10)
WIDE = 6  # largest over smallest ratio from which a phone has no room for TICKS

Figure = dict[str, Any]
PLAIN = {"showarrow": False, "borderpad": 1, "bgcolor": "#ffffff"}  # of a text within a figure


@dataclass(frozen=True)
class Bar:
    """One bar: from the axis' base to value."""

    label: str  # beside the axis; "" where the colour says it
    value: float
    text: str  # at its end
    hover: Sequence[str]  # lines
    colour: str = OURS
    opacity: float = 1.0
    sign: str = ""  # of its peer, before the text: colour is not all that tells them apart


@dataclass(frozen=True)
class Group:
    """Bars under a heading; notes are lines without a bar."""

    heading: str
    bars: Sequence[Bar]
    notes: Sequence[str] = ()


class Palette:
    """A colour and a symbol for each peer, the same over the whole page."""

    def __init__(self, labels: Iterable[str]) -> None:
        self._index = {label: i for i, label in enumerate(dict.fromkeys(labels))}

    def colour(self, label: str) -> str:
        return PEERS[self._index[label] % len(PEERS)]

    def symbol(self, label: str) -> str:
        return SYMBOLS[self._index[label] % len(SYMBOLS)][0]

    def sign(self, label: str) -> str:
        """The symbol as text."""
        return SYMBOLS[self._index[label] % len(SYMBOLS)][1]


def escaped(text: object) -> str:
    """Text that plotly.js shows as it is."""
    return html.escape(str(text), quote=False)


def shortened(text: str, most: int = 22) -> str:
    """Text that leaves a phone's screen room for bars, cut in the middle; hover and tables have all of it."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def amounts(groups: Sequence[Group], title: str) -> Figure:
    """Bars from zero."""
    bars = [bar for group in groups for bar in group.bars]
    free = PHONE_PX - _label_px(bars)
    # Room for each bar's text after it, on a phone.
    ends = [bar.value / max(1 - (CHAR_PX * len(bar.text) + 8) / free, 0.3) for bar in bars]
    return _bars(groups, 0.0, {"range": [0, max(ends, default=0.0) or 1.0], "nticks": 5, "title": {"text": title}})


def ratios(groups: Sequence[Group], title: str) -> Figure:
    """Bars from 1 on a logarithmic axis, where twice as fast and twice as slow are equally long.

    Beyond MAX_RATIO a bar is cut and its text has an arrow: one peer that is far off leaves the others readable.
    """
    drawn = [replace(group, bars=[_cut(bar) for bar in group.bars]) for group in groups]
    values = [bar.value for group in drawn for bar in group.bars]
    low, high = min([*values, 0.6]), max([*values, 1.5])
    free = (CHAR_PX * RATIO_CHARS + 8) / PHONE_PX  # for the text beyond the longest bar
    margin = free / (1 - 2 * free) * math.log10(high / low)
    span = [math.log10(low) - margin, math.log10(high) + margin]
    ticks = WIDE_TICKS if high / low > WIDE else TICKS
    edge = 0.04 * (span[1] - span[0])  # half of a tick's text
    inside = [tick for tick in ticks if span[0] + edge <= math.log10(tick) <= span[1] - edge]
    axis = {"type": "log", "range": span, "tickvals": inside, "ticktext": [f"{tick:g}" for tick in inside]}
    figure = _bars(drawn, 1.0, axis | {"title": {"text": title}})
    line = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 2}}
    figure["layout"]["shapes"] = [line]
    return figure


def _cut(bar: Bar) -> Bar:
    if bar.value > MAX_RATIO:
        return replace(bar, value=MAX_RATIO, text=f"{bar.text} ▸")
    return replace(bar, value=1 / MAX_RATIO, text=f"◂ {bar.text}") if bar.value < 1 / MAX_RATIO else bar


def _bars(groups: Sequence[Group], base: float, axis: dict[str, Any]) -> Figure:
    bars = [bar for group in groups for bar in group.bars]
    indent = _label_px(bars)
    places, remarks, at = [], [], 0.0
    for group in groups:
        for line in textwrap.wrap(group.heading, LINE):
            remarks.append(_remark(at, f"<b>{escaped(line)}</b>", indent))
            at += 1
        for _ in group.bars:
            places.append(at)
            at += 1
        for line in (line for note in group.notes for line in textwrap.wrap(note, LINE)):
            remarks.append(_remark(at, escaped(line), indent))
            at += 1
        at += GAP
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [bar.value - base for bar in bars],
        "y": places,
        "base": base,
        "width": 0.72,
        "text": [_end(bar) for bar in bars],
        "textposition": "outside",
        "textfont": {"size": FONT_PX},
        "constraintext": "none",
        "cliponaxis": False,
        "marker": {
            "color": [bar.colour for bar in bars],
            "opacity": [bar.opacity for bar in bars],
            "line": {"width": 0},
        },
        "customdata": [hover_text(bar.hover) for bar in bars],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    labels = [escaped(bar.label) for bar in bars]
    frame = layout(round(SLOT_PX * at) + 62)
    frame["margin"]["l"] = 8 + indent
    axis["title"]["standoff"] = 6  # px
    frame["xaxis"] |= {"side": "top"} | axis
    frame["yaxis"] |= {
        "range": [at - GAP, -0.7],
        "tickvals": places if indent else [],
        "ticktext": labels if indent else [],
        "ticklabelstandoff": 5,  # px
        "showgrid": False,
        "automargin": False,
    }
    frame["annotations"] = remarks
    return {"data": [trace], "layout": frame}


def layout(height: int) -> dict[str, Any]:
    """What all figures share; the page's style sheet gives texts and lines their light or dark colours."""
    clear = "rgba(0,0,0,0)"
    axis = {"fixedrange": True, "automargin": True, "gridcolor": "#dfe3e8", "zeroline": False}
    return {
        "height": height,
        "margin": {"l": 8, "r": 18, "t": 48, "b": 8},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"family": "system-ui, sans-serif", "size": FONT_PX, "color": "#6b7280"},
        "showlegend": False,
        "dragmode": False,  # a finger scrolls the page
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"size": 14}, "namelength": -1},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def _end(bar: Bar) -> str:
    sign = f'<span style="color:{bar.colour}">{bar.sign}</span> ' if bar.sign else ""
    return sign + escaped(bar.text)


def _label_px(bars: Sequence[Bar]) -> int:
    """The width that the labels beside the axis need; 0 where there are none."""
    longest = max((len(bar.label) for bar in bars), default=0)
    return round(CHAR_PX * longest) + 8 if longest else 0


def _remark(y: float, text: str, indent: int) -> dict[str, Any]:
    """A line over the figure's whole width, from the left, labels included."""
    place = {"xref": "paper", "x": 0, "xanchor": "left", "xshift": -indent, "y": y, "yanchor": "middle"}
    return place | PLAIN | {"text": text}


def hover_text(lines: Sequence[str]) -> str:
    return "<br>".join(escaped(part) for line in lines for part in textwrap.wrap(line, LINE))
