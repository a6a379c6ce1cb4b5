"""Tables of a run over networks, for a terminal and for the README."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.networks import light_table
from bench.networks.contestants import BY_NAME, CONTESTANTS, MINILM, NETWORKS, OURS_INT8, TOKENS
from deepseek_fast.cli import machine, output

Row = dict[str, Any]
Cell = Callable[[list[Row]], str]  # of what one contestant measured on one network
COLUMNS = tuple(dict.fromkeys(contestant.column for contestant in CONTESTANTS if contestant.column))
RUNTIMES = tuple(dict.fromkeys(contestant.runtime for contestant in CONTESTANTS))
ABSENT = "-"  # skipped or failed; the remarks say why
MAX_COUNTS = 3  # of threads in a cell; the file has all


def _joined(values: Sequence[int]) -> str:
    return "/".join(map(str, values))


MINILM_SIZE = f"{NETWORKS[MINILM].batch} x {TOKENS} tokens"
BATCHES = f"{_joined(NETWORKS['resnet50'].batches)}; {MINILM} {_joined(NETWORKS[MINILM].batches)}"
LEGEND = f"""\
ms: median; (best round over ORT fp32's best, taken in turn): below 1 is faster. WRONG or !: too far from its answer.
Nodes: ours of all in the w8a8 file; in the nine CNNs only the fully connected layers of that file are in int8.
{MINILM}: {MINILM_SIZE}, trained weights. The others: one image, random weights, harder on int8 than trained ones.
ORT's own int8: dynamic for {MINILM}, static QDQ for the others. Batches: {BATCHES}."""
LOAD_LEGEND = """\
Best of two fresh processes each (--quick: one), one thread, files in the system's cache. Times: from imports done.
Peak: of the whole process; added: above the peak right before loading. torch reads the fp32 file, then quantizes."""


def table(data: dict[str, Any]) -> str:
    """A row for each network and runtime: ms of each contestant on one thread, and how many nodes are ours."""
    rows = [row for row in _usual(data["rows"]) if row["threads"] == 1]
    nodes = {row["network"]: _nodes(row) for row in rows if row["contestant"] == OURS_INT8}
    lines = _pivot(rows, _time, failed=data["failed"])
    cells = [(*line, nodes.get(line[0], "")) for line in lines]  # a row of another runtime has another name
    return output.table(("one thread, ms", *COLUMNS, "nodes"), cells)


def text(data: dict[str, Any]) -> str:
    """Everything for a terminal."""
    usual = _usual(data["rows"])
    counts = sorted({row["threads"] for row in usual})
    shown = [*counts[: MAX_COUNTS - 1], counts[-1]] if len(counts) > MAX_COUNTS else counts
    single = [row for row in data["rows"] if row["threads"] == 1]
    tables = [
        ("cosine to ORT fp32", _pivot([row for row in usual if row["threads"] == 1], _cosine)),
        (f"threads {_joined(shown)}, ms", _pivot(usual, _at("threads", lambda _: shown)) if len(shown) > 1 else []),
        ("batch, ms", [] if data["quick"] else _pivot(single, _at("batch", _batches_of))),
        ("load, first answer, ms", _pivot(data["loads"], _load)),
        ("peak, added, MB", _pivot(data["loads"], _memory)),
        ("file, MB", _pivot(data["loads"], lambda rows: f"{rows[0]['bytes'] / 1e6:.1f}")),
    ]
    parts = [table(data), LEGEND]
    light = light_table.table(data)
    parts += ["", light, light_table.LEGEND] if light else []
    for title, lines in tables:
        parts += ["", output.table((title, *COLUMNS), lines)] if lines else []
    end = f"{data['seconds']:.0f} s" + (", interrupted" if data["interrupted"] else "")
    return "\n".join([*parts, LOAD_LEGEND, "", *remarks(data), machine.line(data["machine"]), end])


def remarks(data: dict[str, Any]) -> list[str]:
    """A sentence for everything that is wrong, failed or skipped."""
    worst: dict[tuple[str, str], Row] = {}
    for row in data["rows"]:
        key = row["network"], row["contestant"]
        if not row["right"] and _cosine_of(row) < _cosine_of(worst.get(key, {"cosine": 2.0})):
            worst[key] = row
    wrong = [
        f"WRONG: {network}, {contestant}: cosine {_number(row['cosine'], 4)} to ORT fp32 (batch {row['batch']}), "
        f"must be >= {row['least_cosine']}" + _error(row)
        for (network, contestant), row in worst.items()
    ]
    failed = [
        f"failed: {one['network']}{', ' + one['contestant'] if one['contestant'] else ''}, {one['step']}: {one['why']}"
        for one in data["failed"]
    ]
    skipped = [f"skipped: {one['network']}, {one['what']}: {one['why']}" for one in data["skipped"]]
    return wrong + failed + skipped


def _error(row: Row) -> str:
    """Of a light network, after the cosine."""
    if row.get("largest_error") is None or row["batch"] != NETWORKS[row["network"]].batch:
        return ""
    return f"; error {_number(row['error'], 6)} to float64, must be <= {row['largest_error']}"


def _pivot(rows: Sequence[Row], cell: Cell, *, failed: Sequence[Row] = ()) -> list[tuple[str, ...]]:
    """(network and runtime, a cell for each column) of every runtime that has rows."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in [*rows, *failed]):
        lost = {one["contestant"] for one in failed if one["network"] == network}
        if None in lost:  # a process that had several at work
            lost |= {one.name for one in CONTESTANTS if one.runtime == RUNTIMES[0]}
        for runtime in RUNTIMES:
            cells = []
            for column in COLUMNS:
                names = {one.name for one in CONTESTANTS if (one.runtime, one.column) == (runtime, column)}
                mine = [row for row in rows if row["network"] == network and row["contestant"] in names]
                cells.append(cell(mine) if mine else "failed" if names & lost else "")
            if any(cells):
                lines.append((network if runtime == RUNTIMES[0] else f"{network}, {runtime}", *cells))
    return lines


def _usual(rows: Sequence[Row]) -> list[Row]:
    """Those of the batch that every table has."""
    return [row for row in rows if row["batch"] == NETWORKS[row["network"]].batch]


def _time(rows: list[Row]) -> str:
    (row,) = rows
    after = f"({row['ratio_to_stock']:.2f})" if row["right"] else "WRONG"
    return f"{row['ms']:.1f}" if _is_stock(row) else f"{row['ms']:.1f} {after}"


def _cosine_of(row: Row) -> float:
    """JSON has null for NaN, the worst of all."""
    return -2.0 if row["cosine"] is None else float(row["cosine"])


def _is_stock(row: Row) -> bool:
    return BY_NAME[row["contestant"]] == CONTESTANTS[0]


def _cosine(rows: list[Row]) -> str:
    (row,) = rows
    return _number(row["cosine"], 4) + _mark(row)


def _at(key: str, values: Callable[[Row], Sequence[int]]) -> Cell:
    """A cell of ms at each value of a row's key."""

    def cell(rows: list[Row]) -> str:
        found = {row[key]: f"{row['ms']:.1f}{_mark(row)}" for row in rows}
        return "/".join(found.get(value, ABSENT) for value in values(rows[0]))

    return cell


def _batches_of(row: Row) -> Sequence[int]:
    return NETWORKS[row["network"]].batches


def _load(rows: list[Row]) -> str:
    return f"{_number(rows[0]['load_ms'], 0)}, {_number(rows[0]['first_ms'], 0)}"


def _memory(rows: list[Row]) -> str:
    return f"{_number(rows[0]['peak_mb'], 0)}, {_number(rows[0]['added_mb'], 0)}"


def _nodes(row: Row) -> str:
    return f"{row['our_nodes']}/{row['nodes']}"


def _mark(row: Row) -> str:
    return "" if row["right"] else "!"


def _number(value: float | None, digits: int) -> str:
    """JSON has null for NaN."""
    return "NaN" if value is None else f"{value:.{digits}f}"
