"""Fills the tables of the READMEs from a committed baseline: `python -m bench.readme`, with --check only compares.

A table stands between `<!-- bench/baseline/FILE.json NAME -->` and `<!-- end -->`; NAME: `demo`, `networks`,
`light` (the convolutional networks of that run), `light_f32` (those in float32 alone), `attention_quality`,
`attention_growth`, `attention_density` or a room.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.networks import light_table
from bench.networks.table import LEGEND, table
from deepseek_fast.bench import attention_density, attention_growth, attention_quality, means
from deepseek_fast.bench.report import fairest, is_cast
from deepseek_fast.cli import output

ROOT = Path(__file__).resolve().parent.parent
ATTENTION: dict[str, Callable[[Any], str]] = {
    "quality": attention_quality.table,
    "growth": attention_growth.table,
    "density": attention_density.table,
}
NOT_YET = "Not in the baseline yet."
BLOCK = re.compile(r"(<!-- (bench/baseline/\S+\.json) (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a README is out of date")
    check = parser.parse_args().check
    stale = [path for path in readmes() if filled(path) != path.read_text()]
    for path in stale:
        if not check:
            path.write_text(filled(path))
        print(f"{path.relative_to(ROOT)}: {'out of date; run `python -m bench.readme`' if check else 'filled'}")
    return int(check and bool(stale))


def readmes() -> list[Path]:
    return [ROOT / "README.md", ROOT / "bench/README.md", *sorted((ROOT / "kernels").glob("*/README.md"))]


def filled(path: Path) -> str:
    """The file's text with every table as its baseline has it."""

    def block(match: re.Match[str]) -> str:
        run = json.loads((ROOT / match[2]).read_text())
        parts: dict[str, tuple[str, Callable[[Any], str]]] = {
            "demo": ("demo", demo_table),
            "networks": ("networks", networks_table),
            "light": ("networks", light_networks_table),
            "light_f32": ("networks", light_f32_table),
            **{f"attention_{name}": ("attention", partial(attention_table, name)) for name in ATTENTION},
        }
        key, part = parts.get(match[3], ("", None))
        if part is None:
            return match[1] + room_table(run, match[3]) + match[4]
        return match[1] + (part(run[key]) if key in run else NOT_YET) + match[4]

    return BLOCK.sub(block, path.read_text())


def demo_table(demo: dict[str, Any]) -> str:
    header = ("all-MiniLM-L6-v2", "ms", "MB", "min cosine", "short", "torch - ORT")
    lines = []
    for name, row in demo["rows"].items():
        difference = row["max_difference_to_torch"]
        cells = [name, f"{row['ms']:.1f}", f"{row['bytes'] / 1e6:.1f}", f"{row['min_cosine']:.4f}"]
        cells += [f"{row['min_cosine_short']:.3f}", "" if difference is None else f"{difference:.2g}"]
        lines.append(cells)
    return output.table(header, lines) + "\n\n" + _machine(demo["machine"])


def networks_table(data: dict[str, Any]) -> str:
    return table(data) + "\n\n" + LEGEND + "\n\n" + _machine(data["machine"])


def light_networks_table(data: dict[str, Any]) -> str:
    return light_table.table(data) + "\n\n" + light_table.LEGEND + "\n\n" + _machine(data["machine"])


def light_f32_table(data: dict[str, Any]) -> str:
    return light_table.table(data, light_table.KINDS[:1]) + "\n\n" + _machine(data["machine"])


def attention_table(name: str, data: dict[str, Any]) -> str:
    return ATTENTION[name](data[name]) + "\n\n" + _machine(data["machine"])


def room_table(run: dict[str, Any], room: str) -> str:
    found = [row for row in run["rows"] if row["room"] == room and row["best_level"] and row["threads"] == 1]
    if not found:
        return NOT_YET
    shown = [(row, best) for row in found if (best := fairest(row)) or is_cast(row)]  # a cast's kernel has no peer
    if any(is_cast(row) for row, _ in shown):
        header: tuple[str, ...] = ("case", "us", "G elements/s", "GB/s", "of copy", "x peer", "fastest peer")
    else:
        first = next((row["id_means"] for row, _ in shown if "id_means" in row), "M x N x K, dtype, scheme, activation")
        header = (first, "us", "G/s", "of ceiling", "x peer", "fastest peer")
    lines = [
        (
            row["case"],
            *_rates(row),
            f"{row['share_of_ceiling']:.0%}",
            *((f"{best[1]['time_ratio']:.2f}", best[0]) if best else ("", "")),
        )
        for row, best in shown
    ]
    tables = [output.table(header, lines), means.table([row for row, _ in shown])]
    return "\n\n".join([*filter(None, tables), _machine(run["machine"])])


def _rates(row: dict[str, Any]) -> tuple[str, ...]:
    """us and what a second has; a cast may take less than a microsecond."""
    if is_cast(row):
        return f"{row['min_us']:.1f}", f"{row['gelements']:.1f}", f"{row['gbytes']:.0f}"
    return f"{row['min_us']:.0f}", f"{row['gflops']:.0f}"


def _machine(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {data['versions'][name]}" for name in ("torch", "onnxruntime"))
    return f"{data['cpu']}, {data['isa']}, {data['threads']} thread; {versions}; {data['date']}"


if __name__ == "__main__":
    sys.exit(main())
