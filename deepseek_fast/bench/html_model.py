"""The HTML page of a model: contestants side by side, where their time goes, what would be gained next, every node."""

from pathlib import PurePath
from typing import Any

from deepseek_fast.bench import model_text, plots
from deepseek_fast.bench.html_parts import (
    Cell,
    Figures,
    Markup,
    ceilings,
    count,
    facts,
    finite,
    items,
    join,
    key,
    machine_facts,
    number,
    table,
    tag,
)

RUNTIMES = plots.Palette(["the runtime's"])
MAX_TYPES = 7  # operators of a contestant with a bar of their own
MAX_GAINS = 12
MAX_NODES = 200  # of a table, the costliest; the JSON has the others
Result = dict[str, Any]


def title(result: Result) -> str:
    return f"Benchmark of {PurePath(result['model']).name}"


def body(result: Result, _: object, figures: Figures) -> Markup:
    """Everything below the page's heading."""
    size = f"batch {result['batch']}, other unknown axes {result['seq']}"
    measured = [("Model", result["model"]), ("Inputs", f"random, {size}, masks all ones")]
    machine = machine_facts(result["machine"], str(result["machine"]["threads"]))
    parts = [tag("p", _lead(result), cls="lead"), *_warnings(result), facts([*measured, *machine])]
    parts += [tag("h2", "Contestants"), *_contestants(result, figures)]
    shown = model_text.shown(result)
    if result["profiles"]:
        parts += [tag("h2", "Where the time goes"), _types(result, figures)]
        parts += _gains(shown, result["profiles"][shown], figures) if shown else []
        parts += [tag("h2", "Nodes"), *(_nodes(name, of, name == shown) for name, of in result["profiles"].items())]
    parts += [tag("h2", "Ceilings of this machine"), ceilings(result["ceilings"]), tag("h2", "How it was measured")]
    return join([*parts, *(tag("p", sentence) for sentence in _how(result))])


def _is_ours(name: str) -> bool:
    return name.startswith("ours")


def _lead(result: Result) -> str:
    right = [row for row in result["rows"] if row["right"]]
    ours = [row for row in right if _is_ours(row["name"])]
    machine = result["machine"]
    where = f"on {machine['cpu']}, level {machine['isa']}, {count(machine['threads'], 'thread')}, {machine['date']}"
    if not ours:
        return f"No right answer of ours {where}."
    best, stock = min(ours, key=lambda row: row["ms"]), result["rows"][0]
    text = f"{best['name']}: {best['ms']:.1f} ms a run"
    if stock is not best:
        factor = stock["ms"] / best["ms"]
        pace = f"{factor:.1f} times as fast" if factor >= 1 else f"{1 / factor:.1f} times slower"
        text += f", {pace} as {stock['name']}" if factor >= 1 else f", {pace} than {stock['name']}"
        text += f" ({stock['ms']:.1f} ms)"
    return f"{text}; cosine of the answers {best['cosine']:.4f}; {where}."


def _warnings(result: Result) -> list[Markup]:
    texts = []
    if result.get("interrupted"):
        there = f"{count(result['rounds'], 'round')} and {count(len(result['profiles']), 'profile')}"
        texts.append(f"Interrupted: this page has {there}, not the whole run.")
    wrong = [row["name"] for row in result["rows"] if not row["right"] and _is_ours(row["name"])]
    if wrong:
        texts.append(f"WRONG answers of ours, in no comparison: {'; '.join(wrong)}")
    return [tag("p", text, cls="warning", role="note") for text in texts]


def _contestants(result: Result, figures: Figures) -> list[Markup]:
    groups = []
    for row in result["rows"]:
        cosine = f"cosine {finite(row['cosine'], '.4f')}"
        if not row["right"]:
            groups.append(plots.Group(row["name"], [], [f"WRONG: {cosine} to the model's answer"]))
            continue
        hover = [row["name"], f"median {row['ms']:.2f} ms, best {row['ms_min']:.2f} ms", cosine]
        colour = plots.OURS if _is_ours(row["name"]) else RUNTIMES.colour("the runtime's")
        groups.append(plots.Group(row["name"], [plots.Bar("", row["ms"], f"{row['ms']:.1f}", hover, colour)]))
    caption = "Median time of a run, contestants in turn; an answer that departs from the model's own has no bar."
    figure = plots.amounts(groups, "ms")
    header: list[Cell] = [
        "contestant",
        "median ms",
        "min ms",
        "spread",
        "x stock",
        "MB",
        "cosine",
        "max diff",
        "answer",
    ]
    stock = result["rows"][0]["ms"] if result["rows"] else None
    lines: list[list[Cell]] = []
    for row in result["rows"]:
        line: list[Cell] = [row["name"], f"{row['ms']:.2f}", f"{row['ms_min']:.2f}", f"{row['spread']:.0%}"]
        ratio = f"{row['ms'] / stock:.2f}" if stock else "–"
        line.append((ratio, "ours") if row["right"] and _is_ours(row["name"]) else ratio if row["right"] else "–")
        line += [f"{row['bytes'] / 1e6:.1f}", finite(row["cosine"], ".5f"), finite(row["max_abs"])]
        lines.append([*line, "right" if row["right"] else ("WRONG", "bad")])
    legend = "ms of a run; spread: middle half over median; MB of the file; cosine and difference to stock ORT's answer"
    parts = [figures.add(figure, "Time of a run", caption), table(legend, header, [("", lines)])]
    failed = [f"{name}: {reason}" for name, reason in result["failed"].items()]
    return [*parts, *([tag("h3", "Not possible"), items(failed)] if failed else [])]


def _types(result: Result, figures: Figures) -> Markup:
    """Bars of each contestant's operators, ours and the runtime's in two colours."""
    answers = {row["name"]: row["right"] for row in result["rows"]}
    groups = []
    for name, profile in result["profiles"].items():
        sums: dict[tuple[str, bool], list[float]] = {}
        for node in profile["nodes"]:
            sums.setdefault((node["op_type"], node["ours"]), []).append(node["us"])
        ordered = sorted(sums.items(), key=lambda item: -sum(item[1]))
        least = model_text.LEAST_SHARE * profile["ms"] * 1e3
        large = [item for item in ordered[:MAX_TYPES] if sum(item[1]) >= least]
        bars = [_type_bar(op_type, times, profile["ms"], _colour(ours)) for (op_type, ours), times in large]
        rest = [time for _, times in ordered[len(large) :] for time in times]
        if rest:
            bars.append(_type_bar(f"{len(ordered) - len(large)} others", rest, profile["ms"], plots.PEERS[0], 0.5))
        wrong = "" if answers.get(name, True) else ", WRONG answer"
        groups.append(plots.Group(f"{name}: {profile['ms']:.1f} ms{wrong}", bars))
    caption = "Time of all nodes of an operator in one run, each contestant on the same scale."
    legend = key(RUNTIMES, ["the runtime's"], ours=True)
    return figures.add(plots.amounts(groups, "ms"), "Time by operator", caption, legend)


def _type_bar(label: str, times: list[float], total_ms: float, colour: str, opacity: float = 1.0) -> plots.Bar:
    ms = sum(times) / 1e3
    share = f"{ms / total_ms:.0%}" if total_ms else "–"
    hover = [label, f"{count(len(times), 'node')}, {ms:.2f} ms, {share} of the run"]
    return plots.Bar(plots.shortened(label), ms, f"{ms:.1f} ({share})", hover, colour, opacity)


def _colour(ours: bool) -> str:
    return plots.OURS if ours else RUNTIMES.colour("the runtime's")


def _gains(name: str, profile: dict[str, Any], figures: Figures) -> list[Markup]:
    found = sorted(model_text.groups(profile["nodes"]), key=lambda group: -group.gain_us)
    least = model_text.LEAST_SHARE * profile["ms"] * 1e3
    found = [group for group in found if group.gain_us > least][:MAX_GAINS]
    if not found:
        return []
    groups = []
    for group in found:
        share = "" if group.share_of_ceiling is None else f"{group.share_of_ceiling:.0%} of its ceiling"
        gain = group.gain_us / 1e3
        hover = [f"{group.op_type} {group.shape}", f"{count(group.count, 'node')}, {group.us / 1e3:.2f} ms, {share}"]
        hover += [f"left alone: {reason}" for reason in sorted(group.left_alone)[:1]]
        what = f"{group.count} x {group.op_type} {group.shape}"
        text = f"{gain:.2f}" + (f" ({share})" if share else "")
        groups.append(plots.Group(plots.shortened(what, 44), [plots.Bar("", gain, text, hover, _colour(group.ours))]))
    caption = (
        f"{name}: ms of a run that would be gained if these nodes reached this machine's ceiling; nodes of one "
        "operator and shape together."
    )
    legend = key(RUNTIMES, ["the runtime's"], ours=True)
    return [figures.add(plots.amounts(groups, "ms"), "What would be gained next", caption, legend)]


def _nodes(name: str, profile: dict[str, Any], is_open: bool) -> Markup:
    ordered = sorted(profile["nodes"], key=lambda node: -node["us"])
    lines: list[list[Cell]] = []
    for node in ordered[:MAX_NODES]:
        owner: Cell = ("ours", "ours") if node["ours"] else "no"
        line: list[Cell] = [node["name"], (node["op_type"], "word"), (node["shape"], "word"), owner]
        line += [f"{node['us']:.1f}", f"{node['share']:.1%}", number(node["roofline_us"])]
        line += [number(node["share_of_ceiling"], ".0%"), number(node["gain_us"])]
        lines.append([*line, (node["left_alone"] or "", "words")])
    mine = [node for node in ordered if node["ours"]]
    share = sum(node["share"] for node in mine)
    caption = f"{name}: ours are {len(mine)} of {count(len(ordered), 'node')}, {share:.0%} of the time; costliest first"
    rest = ordered[MAX_NODES:]
    if rest:
        caption += f"; {len(rest)} more, {sum(node['share'] for node in rest):.1%} of the time, are in the JSON"
    header: list[Cell] = ["node", ("operator", "word"), ("shape", "word"), "ours", "us", "of run", "ceiling us"]
    header += ["of ceiling", "gain us", ("why it is left alone", "words")]
    summary = tag("summary", f"{name}: {count(len(ordered), 'node')}")
    attributes = {"open": "open"} if is_open else {}
    return tag("details", summary, table(caption, header, [("", lines)]), **attributes)


def _how(result: Result) -> list[str]:
    sentences = [
        f"All contestants ran in turn, {count(result['rounds'], 'round')}, on the same random inputs in one process; "
        "every answer was compared with stock ONNX Runtime's. An answer that departs is WRONG and has no bar.",
        "Nodes were timed afterwards by ONNX Runtime's own profiler, a median over its runs, its cost taken off. A "
        "node's ceiling is the larger of its arithmetic at the probed rate and reading its bytes once.",
    ]
    sums = [
        f"{name}: nodes {profile['ms']:.1f} ms, without the profiler {profile['unprofiled_ms']:.1f} ms"
        for name, profile in result["profiles"].items()
        if "unprofiled_ms" in profile
    ]
    return [*sentences, *([f"Sum of the nodes beside a run without the profiler: {'; '.join(sums)}."] if sums else [])]
