"""`deepseek-fast optimize IN OUT`: a smaller, faster ONNX file of the same model."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.cli import output

if TYPE_CHECKING:
    from deepseek_fast.onnx import Note


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("optimize", help="rewrite an ONNX file to faster operators", description=__doc__)
    parser.add_argument("input", type=Path, metavar="IN", help="an ONNX file")
    parser.add_argument("output", type=Path, metavar="OUT", help="where to write; replaced only when all went well")
    parser.add_argument("--quantize", choices=("w8a8", "w8a16"), help="int8 weights; w8a8: int8 activations too")
    parser.add_argument(
        "--precision", choices=("float32", "bf16"), default="float32", help="bf16: our operators compute in bfloat16"
    )
    parser.add_argument("--level", type=int, default=3, metavar="N", help="0 only attaches bodies ... 3 all (default)")
    parser.add_argument("--fuse", nargs="+", metavar="NAME", help='only these rewrites: "MatMul+Add", "Gemm", ...')
    parser.add_argument("--verify", action="store_true", help="run both files and compare; exit code 1 if they differ")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where OUT was written and, with --verify, agrees with IN; 1 where it does not agree."""
    if arguments.output.exists() and arguments.input.exists() and arguments.output.samefile(arguments.input):
        raise ValueError(f"optimize: OUT must be another file than IN; got '{arguments.output}' for both")
    with output.Progress(2 if arguments.verify else 1) as progress:
        progress.step(f"optimizing {arguments.input.name}")
        from deepseek_fast.onnx import explain, verify

        optimized = explain(
            arguments.input,
            fuse_ops=arguments.fuse,
            quantize=arguments.quantize,
            optim_level=arguments.level,
            precision=arguments.precision,
            output=arguments.output,
        )
        report = None
        if arguments.verify:
            progress.step("verifying")
            report = verify(arguments.input, arguments.output)
    before, after = model_bytes(arguments.input), model_bytes(arguments.output)
    if arguments.json:
        output.print_json(
            {
                "output": str(arguments.output),
                "bytes_before": before,
                "bytes_after": after,
                "rewritten": [vars(note) for note in optimized.rewritten],
                "refused": [vars(note) for note in optimized.refused],
                "verify": None if report is None else report.to_dict(),
            }
        )
    else:
        print(summary(optimized.rewritten))
        print(summary(optimized.refused, "left alone: "))
        print(f"{arguments.output}: {after / 1e6:.1f} MB, was {before / 1e6:.1f} MB")
        if report is not None:
            print(report)
    return 0 if report is None or report.ok else 1


def summary(notes: "Sequence[Note]", prefix: str = "") -> str:
    """Notes alike but for the names in them as one line, with their count and first node; "none" without any."""
    groups: dict[str, list[str]] = {}
    for note in notes:
        sentence = re.sub(r" '[^']*'", "", note.sentence)
        groups.setdefault(f"{note.rule}: {sentence}", []).append(note.node)
    lines = [f"{prefix}{len(nodes)} x {what} (first: {nodes[0]})" for what, nodes in groups.items()]
    return "\n".join(lines) or f"{prefix or 'rewritten: '}none"


def model_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the external data that it names."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(path, load_external_data=False)
    names = {ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)
