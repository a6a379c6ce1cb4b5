"""A model's result for a terminal of 110 columns: contestants, nodes of the best of ours, what would be gained next."""

import textwrap
from dataclasses import dataclass, field
from typing import Any

from deepseek_fast.bench.model_cost import DOMAIN
from deepseek_fast.cli import machine, output

WIDTH = 110  # columns
MAX_GROUPS, MAX_GAINS, MAX_LEFT_ALONE = 12, 5, 3
BUSY = 1.25  # a run over the sum of its nodes
START_US = 100.0  # of a run outside its nodes, at most
LEAST_SHARE = 0.005  # of the run: a group below it is one of "n more"
MAX_WORD = 26  # columns of an operator or a shape
Result = dict[str, Any]


@dataclass
class Group:
    """Nodes of one operator and shape."""

    op_type: str
    shape: str
    ours: bool
    count: int = 0
    us: float = 0.0
    bounded_us: float = 0.0  # of those with a ceiling
    roofline_us: float = 0.0
    gain_us: float = 0.0
    left_alone: set[str] = field(default_factory=set)

    @property
    def share_of_ceiling(self) -> float | None:
        return min(1.0, self.roofline_us / self.bounded_us) if self.bounded_us and self.roofline_us else None


def groups(nodes: list[dict[str, Any]]) -> list[Group]:
    """Nodes alike in operator and shape, the costliest first."""
    found: dict[tuple[str, str, bool], Group] = {}
    for node in nodes:
        group = found.setdefault(
            (node["op_type"], node["shape"], node["ours"]), Group(node["op_type"], node["shape"], node["ours"])
        )
        group.count += 1
        group.us += node["us"]
        if node["share_of_ceiling"] is not None:
            group.bounded_us += node["us"]
            group.roofline_us += min(node["roofline_us"], node["us"])
        group.gain_us += node["gain_us"] or 0.0
        if node["left_alone"]:
            group.left_alone.add(node["left_alone"])
    return sorted(found.values(), key=lambda group: -group.us)


def text(result: Result) -> str:
    """Everything that a person wants to see."""
    parts = [_contestants(result)]
    parts += [_wrap(f"{name}: not possible: {reason}") for name, reason in result["failed"].items()]
    name = shown(result)
    if name is not None:
        parts += ["", *_nodes(name, result["profiles"][name])]
    if result["interrupted"]:
        parts += ["", f"interrupted: {result['rounds']} rounds, {len(result['profiles'])} profiles"]
    return "\n".join([*parts, "", _wrap(machine.line(result["machine"]))])


def shown(result: Result) -> str | None:
    """The contestant whose nodes are printed: the fastest right one of ours; without any, of all."""
    rows = [row for row in result["rows"] if row["right"] and row["name"] in result["profiles"]]
    best = [row for row in rows if row["name"].startswith("ours")] or rows
    return min(best, key=lambda row: row["ms"])["name"] if best else None


def _contestants(result: Result) -> str:
    header = ("model", "ms", "min", "spread", "x stock", "MB", "cosine", "max diff", "answer")
    stock = result["rows"][0]["ms"]
    lines = [
        (
            row["name"],
            _ms(row["ms"] * 1e3),
            _ms(row["ms_min"] * 1e3),
            f"{row['spread']:.0%}",
            f"{row['ms'] / stock:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['cosine']:.5f}",
            f"{row['max_abs']:.2g}",
            "ok" if row["right"] else "DEPARTS",
        )
        for row in result["rows"]
    ]
    legend = (
        f"ms: median of {result['rounds']} interleaved runs, batch {result['batch']}, other unknown axes "
        f"{result['seq']}; spread: middle half over median; cosine and difference to stock ORT"
    )
    return f"{output.table(header, lines)}\n{_wrap(legend)}"


def _nodes(name: str, profile: dict[str, Any]) -> list[str]:
    nodes, total = profile["nodes"], profile["ms"] * 1e3
    found = groups(nodes)
    header = (f"nodes of {name}", "shape", "count", "ms", "of run", "of ceiling", "ours")
    printed = [group for group in found[:MAX_GROUPS] if group.us >= LEAST_SHARE * total]
    lines = [
        (
            _cut(group.op_type),
            _cut(group.shape),
            str(group.count),
            _ms(group.us),
            f"{group.us / total:.0%}",
            "" if group.share_of_ceiling is None else f"{group.share_of_ceiling:.0%}",
            "yes" if group.ours else "no",
        )
        for group in printed
    ]
    rest = found[len(printed) :]
    if rest:
        us, count = sum(group.us for group in rest), sum(group.count for group in rest)
        lines.append((f"{len(rest)} more", "", str(count), _ms(us), f"{us / total:.0%}", "", ""))
    mine = [node for node in nodes if node["ours"]]
    share = sum(node["us"] for node in mine) / total if total else 0.0
    unprofiled = profile["unprofiled_ms"] * 1e3
    sums = (
        f"sum of the nodes {_ms(total)} ms, a run without the profiler {_ms(unprofiled)} ms; "
        f"{profile['profiler_us']:.1f} us of the profiler's own are taken off each node"
    )
    if unprofiled > BUSY * total + START_US:
        sums += "; the machine was busy: a stall hits one node, whose median does not show it, but every run has one"
    next_ones = [group for group in sorted(found, key=lambda group: -group.gain_us)[:MAX_GAINS] if group.gain_us]
    others = [group for group in found if group.left_alone and not group.ours and group not in next_ones]
    return [
        output.table(header, lines) if lines else f"nodes of {name}: none",
        _wrap(sums),
        f"ours ({DOMAIN}): {len(mine)} of {len(nodes)} nodes, {share:.0%} of the time",
        "gained next:" if next_ones else "gained next: nothing that a ceiling shows",
        *map(gained, next_ones),
        *(_wrap(f"left alone: {_what(group)}: {_shortest(group.left_alone)}") for group in others[:MAX_LEFT_ALONE]),
    ]


def gained(group: Group) -> str:
    """12 x Int8Matmul 512x1536x384: 3.10 ms, 81 % of its ceiling, 0.60 ms to gain; and why it is not ours."""
    share = "" if group.share_of_ceiling is None else f", {group.share_of_ceiling * 100:.0f} % of its ceiling"
    why = f"; {'' if group.ours else 'left alone: '}{_shortest(group.left_alone)}" if group.left_alone else ""
    return _wrap(f"{_what(group)}: {_ms(group.us)} ms{share}, {_ms(group.gain_us)} ms to gain{why}", "  ")


def _what(group: Group) -> str:
    return f"{group.count} x {group.op_type} {group.shape}"


def _ms(us: float) -> str:
    return f"{us / 1e3:.2f}" if us >= 100 else f"{us / 1e3:.3f}"


def _shortest(reasons: set[str]) -> str:
    first = min(reasons, key=lambda reason: (len(reason), reason))
    return first + (f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else "")


def _cut(word: str) -> str:
    return word if len(word) <= MAX_WORD else word[: MAX_WORD - 3] + "..."


def _wrap(line: str, indent: str = "") -> str:
    return textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
