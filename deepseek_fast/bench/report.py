"""A run of operators as tables for a terminal."""

from typing import Any

from deepseek_fast.bench import ceiling, means
from deepseek_fast.cli import machine, output

LEGEND = (
    "us: best round; of ceiling: the roofline's least time over it; err/bound: largest error against float64 over the\n"
    "derived bound, 0 is exact; x fastest: our time over the fastest right peer's, taken in turn, below 1 is faster"
)
LEGEND_OF_CASTS = "casts: GB/s: read and written; of ceiling: of a copy of as many bytes; err/bound: 0 is every bit"
OPERATIONS, ELEMENTS = "GFLOP/s", "G elements/s"  # what a row does in a second


def text(run: dict[str, Any], baseline: dict[str, Any] | None = None) -> str:
    """Rows of the highest level on one thread, the levels and threads side by side, remarks, ceilings, machine."""
    rows = [row for row in run["rows"] if row["best_level"] and row["threads"] == 1]
    casts = [row for row in rows if is_cast(row)]
    tables = [_table(some, baseline) for some in ([row for row in rows if not is_cast(row)], casts) if some]
    parts = [*tables, LEGEND, *([LEGEND_OF_CASTS] if casts else [])] if rows else []
    parts += ["", groups, means.LEGEND] if (groups := means.table(rows)) else []
    parts += [*_ladder(run), *remarks(run)]
    if run["interrupted"]:
        parts.append(f"interrupted: {len(run['rows'])} finished rows")
    overhead = f"the harness adds {run['harness_ns']:.0f} ns to a call"
    return "\n".join([*parts, ceiling.text(run["ceilings"]), overhead, machine.line(run["machine"])])


def is_cast(row: dict[str, Any]) -> bool:
    """Whether a row counts elements: it is bound by bytes and has no operations to count."""
    return "gelements" in row


def unit(row: dict[str, Any]) -> str:
    """What `rate` counts."""
    return ELEMENTS if is_cast(row) else OPERATIONS


def rate(row: dict[str, Any]) -> float:
    """Operations, or a cast's elements, in a second, / 1e9."""
    return float(row["gelements"] if is_cast(row) else row["gflops"])


def rate_text(row: dict[str, Any]) -> str:
    """`rate` with digits that tell two rows apart."""
    return f"{rate(row):.1f}" if is_cast(row) else f"{rate(row):.0f}"


def fairest(row: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The fastest peer whose answer is right, by label."""
    right = {label: peer for label, peer in row["peers"].items() if peer["right"]}
    return min(right.items(), key=lambda item: item[1]["min_us"]) if right else None


def right(row: dict[str, Any]) -> bool:
    """Whether our own answer is; null stands for NaN or infinity in a run that was read from JSON."""
    error = row["error_over_bound"]
    return error is not None and error <= 1


def remarks(run: dict[str, Any]) -> list[str]:
    """Wrong answers and peers that refused, a sentence each, equal ones once."""
    found = [
        f"WRONG: ours, {row['id']}: error {row['error_over_bound']} of the bound"
        for row in run["rows"]
        if not right(row)
    ]
    wrong: dict[tuple[str, str], list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for row in run["rows"]:
        for label, peer in row["peers"].items():
            if not peer["right"]:
                wrong.setdefault((row["room"], label), []).append(f"{row['case']} ({peer['relative_error']})")
        for plugin, reason in row["failed"].items():
            refused.setdefault((plugin, reason), []).append(row["case"])
    for (room, label), cases in wrong.items():
        found.append(f"WRONG: {label} in {room}, and so in no comparison: {_some(cases)}")
    return found + [f"{plugin}: {reason}: {_some(cases)}" for (plugin, reason), cases in refused.items()]


def _some(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] + (f" and {len(words) - 1} more" if len(words) > 1 else "")


def _table(rows: list[dict[str, Any]], baseline: dict[str, Any] | None) -> str:
    before = {row["id"]: row["peers"] for row in baseline["rows"]} if baseline else {}
    header = ["room and case", "us", "spread", unit(rows[0]), "GB/s", "of ceiling", "err/bound", "x fastest"]
    lines = []
    for row in rows:
        best = fairest(row)
        error = row["error_over_bound"]
        cells = [f"{row['room']} {row['case']}", f"{row['min_us']:.1f}", f"{row['spread']:.0%}"]
        cells.append(rate_text(row))
        cells += [f"{row['gbytes']:.1f}", f"{row['share_of_ceiling']:.0%}", "nan" if error is None else f"{error:.2g}"]
        cells.append(f"{best[1]['time_ratio']:.2f}" if best else "")
        if baseline:
            was = before.get(row["id"], {}).get(best[0]) if best else None
            cells.append(f"{was['time_ratio']:.2f}" if was else "")
        lines.append([*cells, f"{best[0]} {best[1]['min_us']:.1f} us" if best else "none"])
    return output.table([*header, *(["was"] if baseline else []), "fastest right peer"], lines)


def _ladder(run: dict[str, Any]) -> list[str]:
    """The rate of every case at every level and number of threads that was run; nothing where that is one."""
    columns: dict[tuple[str, int], str] = {}
    cases: dict[str, dict[str, dict[tuple[str, int], str]]] = {}
    for row in run["rows"]:
        key = row["isa"], row["threads"]
        columns[key] = row["isa"] if row["threads"] == 1 else f"{row['threads']} threads"
        of_unit = cases.setdefault(unit(row), {})
        of_unit.setdefault(f"{row['room']} {row['case']}", {})[key] = rate_text(row)
    if len(columns) < 2:
        return []
    tables = []
    for name, of_unit in cases.items():
        lines = [(case, *(of.get(key, "") for key in columns)) for case, of in of_unit.items()]
        tables += ["", output.table((name, *columns.values()), lines)]
    return tables
