"""Figures of one room: against each peer, in the roofline, at each instruction set level, on each number of threads."""

from collections.abc import Iterable
from typing import Any

from deepseek_fast.bench import plots, report
from deepseek_fast.bench.html_parts import Figures, Markup, count, finite, key
from deepseek_fast.bench.plot_roofline import Point, roofline

Row = dict[str, Any]
Rows = list[Row]


def figures(rows: Rows, ceilings: dict[str, Any], palette: plots.Palette, page: Figures) -> list[Markup]:
    """Those that the rows allow: levels and threads only where there are several."""
    best = [row for row in rows if row["best_level"]]
    counts = sorted({row["threads"] for row in best})
    parts = []
    for threads in counts:
        found = [row for row in best if row["threads"] == threads]
        parts += [_ratios(found, palette, page)] if any(row["peers"] for row in found) else []
    single = [row for row in rows if row["threads"] == 1]
    highest = [row for row in single if row["isa"] == ceilings["isa"]]
    parts += _bytes(highest, page) if report.is_cast(rows[0]) else _roofline(highest, ceilings, palette, page)
    if len({row["isa"] for row in single}) > 1:
        parts.append(_levels(single, page))
    if len(counts) > 1:
        parts.append(_threads(best, page))
    return parts


def _ratios(rows: Rows, palette: plots.Palette, page: Figures) -> Markup:
    groups = []
    for row in rows:
        bars, notes = [], []
        if not report.right(row):
            notes.append(f"WRONG: ours, error over bound {finite(row['error_over_bound'])}")
        for label, peer in row["peers"].items():
            if not peer["right"]:
                error = f"error {finite(peer['relative_error'])}, allowed {peer['tolerance']:.2g}"
                notes.append(f"WRONG: {label}, {error}")
            elif report.right(row):
                ratio, colour = peer["time_ratio"], palette.colour(label)
                hover = [label, row["case"], row["why"], f"our time over its: {ratio:.3f}"]
                hover.append(f"best round: ours {row['min_us']:.1f} us, its {peer['min_us']:.1f} us")
                bars.append(plots.Bar("", ratio, f"{ratio:.2f}", hover, colour, sign=palette.sign(label)))
        groups.append(plots.Group(row["case"], bars, notes or ([] if bars else ["no peer"])))
    caption = (
        "Our time over the peer's. The line at 1 is the peer: a bar to its left means that ours is faster, to its "
        "right slower; twice as fast and twice as slow are equally long, and an arrow means that the bar goes on."
    )
    heading = f"Time against each peer, {count(rows[0]['threads'], 'thread')}"
    figure = plots.ratios(groups, "our time / peer's")
    return page.add(figure, heading, caption, key(palette, _drawn(rows), ours=False))


def _drawn(rows: Rows) -> list[str]:
    """Labels of the peers with a right answer."""
    return list(dict.fromkeys(label for row in rows for label, peer in row["peers"].items() if peer["right"]))


def _roofline(rows: Rows, ceilings: dict[str, Any], palette: plots.Palette, page: Figures) -> list[Markup]:
    ours = [_point(row, "ours", row["min_us"]) for row in rows if report.right(row)]
    peers: dict[str, list[Point]] = {}
    for row in rows:
        for label, peer in row["peers"].items():
            if peer["right"]:
                peers.setdefault(label, []).append(_point(row, label, peer["min_us"]))
    if not (ours or peers):
        return []
    caption = (
        "What a call reaches over what it computes for each byte. Level lines: the most that this machine's "
        "instructions give, in G operations/s; rising lines: the most that a memory level can feed. One thread, best "
        "round."
    )
    figure = roofline(ours, peers, ceilings, palette)
    return [page.add(figure, "Roofline", caption, key(palette, peers, ours=True))]


def _bytes(rows: Rows, page: Figures) -> list[Markup]:
    """Instead of a roofline, in which a cast would lie at 0 flops a byte."""
    groups = []
    for row in filter(report.right, rows):
        ceiling = row["gbytes"] / row["share_of_ceiling"]
        lines = [row["case"], row["why"], f"{row['min_us']:.1f} us, {_rate(row)}"]
        bars = [plots.Bar("ours", row["gbytes"], f"{row['gbytes']:.1f}", [*lines, f"{row['gbytes']:.1f} GB/s"])]
        share = f"ours reaches {row['share_of_ceiling']:.0%} of it"
        bars.append(plots.Bar("copy", ceiling, f"{ceiling:.1f}", [f"copy: {ceiling:.1f} GB/s", share], plots.PEERS[0]))
        groups.append(plots.Group(row["case"], bars))
    caption = (
        "Bytes read and written in a second, and what a copy of as many bytes reaches in the same memory level. One "
        "thread, best round."
    )
    return [page.add(plots.amounts(groups, "GB/s"), "Bytes against a copy", caption)] if groups else []


def _rate(row: Row) -> str:
    """12 GFLOP/s"""
    return f"{report.rate_text(row)} {report.unit(row)}"


def _point(row: Row, name: str, us: float) -> Point:
    gflops, share = row["flops"] / us / 1e3, row["roofline_us"] / us
    hover = [name, row["case"], row["why"], f"{us:.1f} us, {gflops:.0f} GFLOP/s", f"{share:.0%} of its ceiling"]
    return Point(row["flops"] / row["bytes"], gflops, hover)


def _levels(rows: Rows, page: Figures) -> Markup:
    levels = list(dict.fromkeys(row["isa"] for row in rows))
    groups = []
    for case, of in _by_case(rows).items():
        bars, notes = [], []
        for row in of:
            if not report.right(row):
                notes.append(f"WRONG: {row['isa']}")
                continue
            hover = [row["isa"], case, f"{row['min_us']:.1f} us, {_rate(row)}"]
            hover.append(f"{row['share_of_ceiling']:.0%} of this level's {row['rate'] or 'copy'} ceiling")
            # The highest level in full colour, each lower one paler.
            opacity = 1 - 0.65 * levels.index(row["isa"]) / (len(levels) - 1)
            text = report.rate_text(row)
            bars.append(plots.Bar(row["isa"], report.rate(row), text, hover, opacity=opacity))
        groups.append(plots.Group(case, bars, notes))
    caption = "Ours at each level of this CPU, one thread; DSF_MAX_ISA holds the kernels to a level."
    return page.add(plots.amounts(groups, report.unit(rows[0])), "Instruction set levels", caption)


def _threads(rows: Rows, page: Figures) -> Markup:
    groups = []
    for case, of in _by_case(rows).items():
        bars = []
        for row in (row for row in of if report.right(row)):
            times = f"{report.rate(row) / report.rate(of[0]):.2f}x"
            threads, first = count(row["threads"], "thread"), row is of[0]
            hover = [case, f"{threads}: {row['min_us']:.1f} us, {_rate(row)}, {times}"]
            text = report.rate_text(row) + (f" ({times})" if not first else "")
            bars.append(plots.Bar(threads, report.rate(row), text, hover, opacity=0.5 if first else 1.0))
        groups.append(plots.Group(case, bars))
    caption = "Ours on one thread and on more, highest level; in brackets how many times the first bar's rate."
    return page.add(plots.amounts(groups, report.unit(rows[0])), "Threads", caption)


def _by_case(rows: Iterable[Row]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return found
