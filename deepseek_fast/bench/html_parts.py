"""Pieces of the HTML page: elements that escape what they are given, tables, keys, and figures for one script."""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deepseek_fast.bench import plots
from deepseek_fast.cli import output


class Markup(str):
    """Text that is HTML already; every other string is escaped."""


Cell = str | tuple[str, str]  # a text, or (text, CSS class)


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element: tag("p", "a < b", cls="soft") is <p class="soft">a &lt; b</p>."""
    inside = "".join(child if isinstance(child, Markup) else html.escape(child) for child in children)
    words = "".join(
        f' {key.replace("cls", "class").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{words}>{inside}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other."""
    return Markup("\n".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def items(texts: Iterable[str]) -> Markup:
    """A list of sentences."""
    return tag("ul", *(tag("li", text) for text in texts), cls="plain")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and their values."""
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in pairs), cls="facts")


def table(
    caption: str, header: Sequence[Cell], bodies: Iterable[tuple[str, Sequence[Sequence[Cell]]]], *, cls: str = "box"
) -> Markup:
    """A table that scrolls in its own box.

    bodies: (heading of some rows or "", the rows); the first cell of a row is its head.
    """
    head = tag("tr", *(_cell("th", cell, scope="col") for cell in header))
    parts = [tag("caption", tag("span", caption)), tag("thead", head)]
    for heading, rows in bodies:
        lines = [tag("tr", tag("th", heading, scope="rowgroup", colspan=str(len(header))), cls="level")] * bool(heading)
        for first, *others in rows:
            lines.append(tag("tr", _cell("th", first, scope="row"), *(_cell("td", cell) for cell in others)))
        parts.append(tag("tbody", *lines))
    return tag("div", tag("table", *parts), cls=cls, tabindex="0", role="region", aria_label=caption)


def _cell(name: str, cell: Cell, **attributes: str) -> Markup:
    text, kind = (cell, "") if isinstance(cell, str) else cell
    return tag(name, text, **attributes, **({"cls": kind} if kind else {}))


def key(palette: plots.Palette, labels: Iterable[str], *, ours: bool) -> Markup:
    """What the colours and symbols of a figure stand for."""
    signs = [(plots.OURS, plots.OURS_SYMBOL[1], "ours")] * ours
    signs += [(palette.colour(label), palette.sign(label), label) for label in labels]
    entries = (
        tag("li", tag("span", sign, style=f"color:{colour}", aria_hidden="true"), label)
        for colour, sign, label in signs
    )
    return tag("ul", *entries, cls="key")


def number(value: float | None, form: str = ".1f") -> str:
    """A figure, and a dash for none."""
    return "–" if value is None else format(value, form)


def finite(value: float | None, form: str = ".2g") -> str:
    """A figure of an answer: None stands for NaN and infinity."""
    return "not finite" if value is None else format(value, form)


def count(number: int, word: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {word}{'s' * (number != 1)}"


class Figures:
    """The figures of a page, drawn by one script at its end."""

    def __init__(self) -> None:
        self._figures: dict[str, plots.Figure] = {}

    def add(self, figure: plots.Figure, title: str, caption: str, *legend: Markup) -> Markup:
        """A heading, a caption, a key, and the place where the figure will be drawn."""
        name = f"plot-{len(self._figures)}"
        self._figures[name] = figure
        height = f"height:{figure['layout']['height']}px"
        place = tag("div", id=name, cls="plot", style=height, role="img", aria_label=f"{title}. {caption}")
        return join([tag("h3", title), tag("figure", tag("figcaption", caption), *legend, place)])

    def script(self) -> Markup:
        """Plotly.js, the figures, and the call that draws them.

        raises: RuntimeError where plotly is not installed.
        """
        if not self._figures:
            return Markup()
        # In a script element "<" could end it or open a comment.
        data = json.dumps(output.finite(self._figures), separators=(",", ":")).replace("<", "\\u003c")
        draw = (Path(__file__).parent / "page.js").read_text()
        library = plotly_js()
        return Markup(
            f"<script>{library}</script>\n"
            f'<script type="application/json" id="figures">{data}</script>\n<script>\n{draw}</script>'
        )


def plotly_js() -> str:
    """The whole of plotly.js; RuntimeError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise RuntimeError("bench: --html needs plotly; pip install 'deepseek-fast[bench]'") from None
    return str(get_plotlyjs())


def style() -> Markup:
    """The page's style sheet."""
    return Markup(f"<style>\n{(Path(__file__).parent / 'page.css').read_text()}</style>")


def machine_facts(machine: dict[str, Any], threads: str) -> list[tuple[str, str]]:
    """What a measurement must name."""
    return [
        ("CPU", f"{machine['cpu']}, {count(machine['cpus'], 'logical CPU')}, load {machine['load']} at the start"),
        ("Level", machine["isa"]),
        ("Threads", threads),
        ("Versions", ", ".join(f"{name} {version}" for name, version in _versions(machine))),
        ("Date", machine["date"]),
    ]


def _versions(machine: dict[str, Any]) -> list[tuple[str, str]]:
    return [*machine["versions"].items(), ("Python", machine["python"])]


def ceilings(found: dict[str, Any]) -> Markup:
    """The machine's ceilings as a table."""
    lines: list[list[Cell]] = [
        [name, f"{rate['per_second'] / 1e9:.0f} Gop/s", (rate["by"], "word")] for name, rate in found["rates"].items()
    ]
    for level, read in found["read"].items():
        lines.append([f"{level} read", f"{read / 1e9:.0f} GB/s", ("loads", "word")])
        lines.append([f"{level} copy", f"{found['copy'][level] / 1e9:.0f} GB/s", ("loads and stores", "word")])
    caption = f"One thread at {found['isa']}, probed in this run; a multiplication and an addition are two operations"
    return table(caption, ("ceiling", "measured", ("by", "word")), [("", lines)], cls="box narrow")
