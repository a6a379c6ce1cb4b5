"""Tables of one room: every row as in the terminal, every peer of every row, and the peers that were left out."""

from typing import Any

from deepseek_fast.bench import report
from deepseek_fast.bench.html_parts import Cell, Markup, count, finite, items, number, table, tag

Row = dict[str, Any]
Bodies = dict[str, list[list[Cell]]]  # lines of a table by level and threads
LEGEND = (
    "min: best round; spread: middle half over median; rates: of the best round; of ceiling: the roofline's least time "
    "over ours; err/bound: largest error against float64 over the derived bound, 0 is exact; x fastest: our time "
    "over the fastest right peer's, below 1 is faster"
)
LEGEND_OF_CASTS = (
    "min: best round; spread: middle half over median; rates: of the best round, GB/s of bytes read and written; of "
    "ceiling: the time of copying as many bytes over ours; err/bound: 0 where every bit is right; x fastest: our time "
    "over the fastest right peer's, below 1 is faster"
)


def tables(rows: list[Row], baseline: dict[str, Any] | None) -> list[Markup]:
    """All of a room's figures."""
    whys: dict[str, list[str]] = {}
    for row in rows:
        whys.setdefault(row["why"], []).append(row["case"])
    cases = items(f"{why}: {', '.join(dict.fromkeys(of))}" for why, of in whys.items())
    parts = [tag("h3", "The cases"), cases, tag("h3", "Every row"), _rows(rows, baseline)]
    return parts + _peers(rows) + _left_out(rows)


def coloured(ratio: float | None) -> Cell:
    """A ratio of times, in our colour where ours is faster."""
    if ratio is None:
        return "–"
    return (f"{ratio:.2f}", "ours") if round(ratio, 2) < 1 else f"{ratio:.2f}"


def _rows(rows: list[Row], baseline: dict[str, Any] | None) -> Markup:
    before = {row["id"]: row["peers"] for row in baseline["rows"]} if baseline else {}
    header: list[Cell] = ["case", "median us", "min us", "spread", report.unit(rows[0]), "GB/s", "of ceiling"]
    header += ["err/bound", "x fastest", *(["x fastest, baseline"] if baseline else [])]
    header.append(("fastest right peer", "word"))
    bodies: Bodies = {}
    for row in rows:
        best, error = report.fairest(row), finite(row["error_over_bound"])
        line: list[Cell] = [row["case"], f"{row['median_us']:.1f}", f"{row['min_us']:.1f}", f"{row['spread']:.0%}"]
        line += [report.rate_text(row), f"{row['gbytes']:.1f}", f"{row['share_of_ceiling']:.0%}"]
        line.append(error if report.right(row) else (f"WRONG {error}", "bad"))
        line.append(coloured(best[1]["time_ratio"]) if best and report.right(row) else "–")
        if baseline:
            was = before.get(row["id"], {}).get(best[0]) if best else None
            line.append(coloured(was["time_ratio"]) if was else "–")
        line.append((best[0] if best else "none", "word"))
        bodies.setdefault(_level(row), []).append(line)
    return table(LEGEND_OF_CASTS if report.is_cast(rows[0]) else LEGEND, header, bodies.items())


def _peers(rows: list[Row]) -> list[Markup]:
    bodies: Bodies = {}
    for row in rows:
        for label, peer in row["peers"].items():
            line: list[Cell] = [row["case"], (label, "word")]
            line += [number(peer["median_us"]), number(peer["min_us"]), number(peer["spread"], ".0%")]
            line.append(coloured(peer["time_ratio"]) if peer["right"] and report.right(row) else "–")
            line += [finite(peer["relative_error"]), f"{peer['tolerance']:.2g}"]
            line.append("right" if peer["right"] else ("WRONG", "bad"))
            bodies.setdefault(_level(row), []).append(line)
    if not bodies:
        return []
    header = ("case", ("peer", "word"), "median us", "min us", "spread", "ratio", "error", "tolerance", "answer")
    caption = "Each peer of each row, in the same rounds; ratio: our time over its; error: of all values together"
    return [tag("details", tag("summary", "Every peer of every row"), table(caption, header, bodies.items()))]


def _left_out(rows: list[Row]) -> list[Markup]:
    """Peers without a figure, with the reason."""
    texts = [
        f"WRONG: {label}, {row['case']}, {_level(row)}: error {finite(peer['relative_error'])} where "
        f"{peer['tolerance']:.2g} is allowed"
        for row in rows
        for label, peer in row["peers"].items()
        if not peer["right"]
    ]
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for plugin, reason in row["failed"].items():
            reasons[plugin, reason] = reasons.get((plugin, reason), 0) + 1
    texts += [f"{plugin}: {reason} ({count(times, 'row')})" for (plugin, reason), times in reasons.items()]
    return [tag("h3", "Peers left out"), items(texts)] if texts else []


def _level(row: Row) -> str:
    return f"{row['isa']}, {count(row['threads'], 'thread')}"
