"""The HTML page of a run of operators: what came out, a section a room, the ceilings, how it was measured."""

import statistics
from collections.abc import Sequence
from typing import Any

from deepseek_fast.bench import html_room_figures, html_room_tables, plots, report
from deepseek_fast.bench.html_parts import (
    Cell,
    Figures,
    Markup,
    ceilings,
    count,
    facts,
    join,
    machine_facts,
    table,
    tag,
)

# Ratios this near to 1 count as equal: two runs of one machine differ by as much.
EQUAL = 0.05


def title(run: dict[str, Any]) -> str:
    return f"Benchmark of {_listed(_rooms(run))}" if run["rows"] else "Benchmark without a finished row"


def body(run: dict[str, Any], baseline: dict[str, Any] | None, figures: Figures) -> Markup:
    """Everything below the page's heading."""
    palette = plots.Palette(label for row in run["rows"] for label in row["peers"])
    parts = [tag("p", _lead(run), cls="lead"), *_warnings(run, baseline)]
    if run["rows"]:
        parts.append(_glance(run))
    parts.append(facts(machine_facts(run["machine"], _threads(run))))
    for room in _rooms(run):
        rows = [row for row in run["rows"] if row["room"] == room]
        parts.append(tag("h2", room))
        parts += html_room_figures.figures(rows, run["ceilings"], palette, figures)
        parts += html_room_tables.tables(rows, baseline)
    parts += [tag("h2", "Ceilings of this machine"), ceilings(run["ceilings"]), tag("h2", "How it was measured")]
    return join([*parts, *(tag("p", sentence) for sentence in _how(run))])


def _rooms(run: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["room"] for row in run["rows"]))


def _listed(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def _threads(run: dict[str, Any]) -> str:
    counts = sorted({row["threads"] for row in run["rows"]} or {run["machine"]["threads"]})
    return _listed([str(threads) for threads in counts])


def _lead(run: dict[str, Any]) -> str:
    machine = run["machine"]
    ours = f"deepseek-fast {machine['versions'].get('deepseek-fast', '')}".strip()
    if not run["rows"]:
        return f"No row of {ours} was finished on {machine['cpu']}, {machine['date']}."
    labels = {label for row in run["rows"] for label in row["peers"]}
    threads = _threads(run)
    beside = f" beside {count(len(labels), 'peer')}" if labels else ""
    return (
        f"Kernels of {ours}{beside} on {machine['cpu']}, level {machine['isa']}, "
        f"{threads} thread{'s' * (threads != '1')}: {count(len(run['rows']), 'row')}, every answer checked against "
        f"{_reference(run)} in the same run, {machine['date']}."
    )


def _reference(run: dict[str, Any]) -> str:
    """What answers of the run are held against."""
    casts = [report.is_cast(row) for row in run["rows"]]
    return "float64" if not any(casts) else "its reference" if all(casts) else "float64 or bit for bit"


def _warnings(run: dict[str, Any], baseline: dict[str, Any] | None) -> list[Markup]:
    texts = []
    if run["interrupted"]:
        texts.append(f"Interrupted: this page has {count(len(run['rows']), 'finished row')}, not the whole run.")
    wrong = [row["id"] for row in run["rows"] if not report.right(row)]
    if wrong:
        texts.append(f"WRONG answers of ours, in no comparison: {', '.join(wrong)}")
    if baseline and baseline["machine"]["cpu"] != run["machine"]["cpu"]:
        texts.append(f"The baseline is of another CPU, {baseline['machine']['cpu']}: its ratios need not hold here.")
    return [tag("p", text, cls="warning", role="note") for text in texts]


def _glance(run: dict[str, Any]) -> Markup:
    """A line a room: how often ours is faster, and how near to the ceiling."""
    lines: list[list[Cell]] = []
    for room in _rooms(run):
        rows = [row for row in run["rows"] if row["room"] == room and row["best_level"] and row["threads"] == 1]
        rows = [row for row in rows if report.right(row)]
        ratios = [best[1]["time_ratio"] for row in rows if (best := report.fairest(row))]
        faster, slower = (sum(found) for found in ([r < 1 - EQUAL for r in ratios], [r > 1 + EQUAL for r in ratios]))
        compared = f"{faster}, {len(ratios) - faster - slower}, {slower}" if ratios else "–"
        middle = html_room_tables.coloured(statistics.median(ratios)) if ratios else "–"
        share = f"{statistics.median(row['share_of_ceiling'] for row in rows):.0%}" if rows else "–"
        lines.append([room, compared, middle, share])
    caption = (
        "Our time over the fastest right peer's, highest level, one thread: cases in which ours is faster, equal "
        f"(within {EQUAL:.0%}), slower; the median ratio, below 1 is faster; the median share of the machine's ceiling"
    )
    header = ("operator", "faster, equal, slower", "ratio", "of ceiling")
    return table(caption, header, [("", lines)], cls="box narrow")


def _how(run: dict[str, Any]) -> list[str]:
    sentences = [
        "Ours and its peers take turns, round after round in one process, so that a busy moment hits all of them; "
        "ratios are between the best rounds. Times of different hours or machines are never compared.",
        "Every answer of this run was compared with a float64 reference: ours with the error bound derived for it, a "
        "peer's with its library's tolerance. An answer beyond that is WRONG and takes part in no comparison.",
        "The ceiling of a row is the larger of its arithmetic at the probed rate and reading its bytes once, probed "
        "right beside the row; several threads are granted that many times one thread's.",
    ]
    if any(map(report.is_cast, run["rows"])):
        sentences.append(
            "A cast computes next to nothing: its answers are compared bit for bit, and its ceiling is the speed of "
            "copying as many bytes, read and written together, within the same memory level."
        )
    shortest = min((row["min_us"] for row in run["rows"]), default=None)
    if shortest is not None:
        share = run["harness_ns"] / 1e3 / shortest
        sentences.append(
            f"The harness adds {run['harness_ns']:.0f} ns to a call, {share:.2%} of the shortest row, not subtracted."
        )
    return sentences
