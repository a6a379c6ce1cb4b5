"""`deepseek-fast bench [ROOM ... | attention | MODEL]`: our kernels beside their peers, or a model, on this machine.

Rooms are the operators; every answer is checked against float64 in the same run. A model is timed as it is in stock
ONNX Runtime, in its own int8 and optimized by us, then node by node against this machine's ceiling. attention: what
sparse attention costs in quality on MiniLM, how its time and memory grow with n, and its time by density.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepseek_fast.cli import machine, output

PRINT = Path("-")
ATTENTION = "attention"


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("bench", help="time our kernels beside their peers, or a model", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="operators (default: all), attention, or one ONNX file"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F, a row at a time; - prints them")
    parser.add_argument("--html", type=Path, metavar="F", help="write one self-contained page to F")
    kernels = parser.add_argument_group("operators")
    kernels.add_argument("--quick", action="store_true", help="main sizes, highest instruction set level, one thread")
    kernels.add_argument(
        "--peers", type=_words, metavar="P,...", help="all that are installed, none, names, or .py files of your own"
    )
    kernels.add_argument(
        "--baseline", type=Path, metavar="F", help="compare three runs with F, a --json file or a folder of them"
    )
    model = parser.add_argument_group("a model")
    model.add_argument("--quantize", choices=("w8a8", "w8a16"), default="w8a8", help="our int8 (default: w8a8)")
    model.add_argument("--batch", type=_positive, default=8, help="an unknown first axis (default: 8)")
    model.add_argument("--seq", type=_positive, default=64, help="any other unknown axis (default: 64)")
    model.add_argument("--threads", type=_positive, default=1, help="of each contestant (default: 1)")
    model.add_argument("--rounds", type=_rounds, default=20, help="timed runs of each (default: 20)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where all is right; 1 where an answer is not, or a row is slower than the baseline."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads and ORT's would fight
    from deepseek_fast.bench import rooms

    known = rooms.names()
    unknown = [target for target in arguments.targets if target not in known]
    files = [target for target in unknown if target.endswith(".onnx") or Path(target).exists()]
    if files and len(arguments.targets) > 1:
        raise ValueError(f"bench: targets must be operators or one ONNX file; got {' '.join(arguments.targets)}")
    if files:
        return _model(arguments, Path(files[0]))
    if arguments.targets == [ATTENTION]:
        return _attention(arguments)
    if unknown:
        names = ", ".join((*known, ATTENTION))
        raise ValueError(f"bench: targets must be an ONNX file or among {names}; got '{unknown[0]}'")
    return _rooms(arguments, list(dict.fromkeys(arguments.targets)) or known)


def _model(arguments: argparse.Namespace, path: Path) -> int:
    """As with operators: refused first, measured then; what Ctrl-C leaves is kept and shown."""
    if arguments.quick or arguments.peers is not None or arguments.baseline is not None:
        raise ValueError(f"bench: --quick, --peers and --baseline must come with operators; got the model '{path}'")
    from deepseek_fast.bench import model, model_text
    from deepseek_fast.bench import run as runs

    keep = None if arguments.json is None or arguments.json == PRINT else arguments.json
    for target in (keep, arguments.html):
        if target is not None:
            runs.check_writable(target)
    page = _page(arguments.html)
    names = ("quantize", "batch", "seq", "threads", "rounds")
    options = model.Options(path, **{name: getattr(arguments, name) for name in names})
    with output.Progress(model.STEPS) as progress:
        result = model.measure(options, progress)
    if keep is not None:
        runs.write(result, keep)
    if arguments.html is not None:
        arguments.html.write_text(page(result), encoding="utf-8")
    if arguments.json == PRINT:
        output.print_json(result)
    else:
        print(model_text.text(result))
    if result["interrupted"]:
        raise KeyboardInterrupt
    return 0 if model.right(result) else 1


def _attention(arguments: argparse.Namespace) -> int:
    """0 where every answer is right; quality and times are shown, not judged."""
    if arguments.html is not None or arguments.peers is not None or arguments.baseline is not None:
        raise ValueError("bench: --html, --peers and --baseline must come with operators; got attention")
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("bench: attention is measured through torch, which is not installed")
    from deepseek_fast.bench import attention
    from deepseek_fast.bench import run as runs
    from deepseek_fast.cli import demo_model

    demo_model.folder()  # says what to install
    keep = None if arguments.json is None or arguments.json == PRINT else arguments.json
    if keep is not None:
        runs.check_writable(keep)
    with output.Progress(len(attention.PARTS)) as progress:
        result = attention.measure(progress, quick=arguments.quick)
    if keep is not None:
        runs.write(result, keep)
    if arguments.json == PRINT:
        output.print_json(result)
    else:
        print(attention.text(result))
    return 0 if attention.right(result) else 1


def _rooms(arguments: argparse.Namespace, names: list[str]) -> int:
    """Everything that can be refused is refused before the first row."""
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("bench: operators are measured through torch, which is not installed; a model needs none")
    from deepseek_fast.bench import gate, peers, report, rooms
    from deepseek_fast.bench import run as runs

    keep = None if arguments.json is None or arguments.json == PRINT else arguments.json
    for path in (keep, arguments.html):
        if path is not None:
            runs.check_writable(path)
    page = _page(arguments.html)
    peer_names = peers.chosen(arguments.peers, quick=arguments.quick)
    rows = rooms.rows(names, quick=arguments.quick)
    cpu, baseline, verdict = machine.cpu_name(), None, None
    if arguments.baseline is not None:
        path = gate.find(arguments.baseline, cpu)
        if path is None:
            print(f"bench gate: no {gate.file_name(cpu)} in {arguments.baseline}: nothing to compare with on this CPU")
            return 0
        baseline = gate.load(path, cpu)
    with output.Progress(len(rows) if baseline is None else 2 * gate.RUNS) as progress:
        if baseline is None:
            result = runs.collect(rows, peer_names, keep=keep, progress=progress)
        else:
            verdict = gate.check(rows, baseline, gate.in_a_process(peer_names), keep=keep, progress=progress)
            result = verdict.run
    if arguments.html is not None:
        arguments.html.write_text(page(result, baseline), encoding="utf-8")
    if arguments.json == PRINT:
        output.print_json(result)
    else:
        print(report.text(result, baseline))
        if verdict:
            print(verdict.text)
    if result["interrupted"]:
        raise KeyboardInterrupt  # the finished rows are kept and shown
    return 0 if all(map(report.right, result["rows"])) and not (verdict and verdict.slower) else 1


def _page(path: Path | None) -> Callable[..., str]:
    """What makes the page; RuntimeError where one is wanted and its library is not there."""
    if path is None:
        return lambda *_: ""
    if importlib.util.find_spec("plotly") is None:
        raise RuntimeError("bench: --html needs plotly; pip install 'deepseek-fast[bench]'")
    from deepseek_fast.bench import html

    return html.page


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got '{word}'")
    return int(word)


def _rounds(word: str) -> int:
    if _positive(word) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2; got '{word}'")
    return int(word)
