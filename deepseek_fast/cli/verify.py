"""`deepseek-fast verify REF CAND`: do two ONNX files give the same answers, and if not, where do they part?"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_fast.cli import output

if TYPE_CHECKING:
    import numpy as np


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("verify", help="compare two ONNX files' answers", description=__doc__)
    parser.add_argument("reference", type=Path, metavar="REF", help="an ONNX file, run in stock ONNX Runtime")
    parser.add_argument("candidate", type=Path, metavar="CAND", help="an ONNX file that should give the same answers")
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="arrays by input name (default: made from a seed)")
    parser.add_argument("--atol", type=float, help="largest absolute difference allowed")
    parser.add_argument("--rtol", type=float, help="the same, relative to the output's largest value")
    parser.add_argument("--min-cosine", type=float, help="smallest cosine of a row allowed")
    parser.add_argument("--threads", type=int, help="of each session")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where the answers agree, 1 where they do not."""
    with output.Progress(1) as progress:
        progress.step("verifying")
        from deepseek_fast.onnx import verify

        report = verify(
            arguments.reference,
            arguments.candidate,
            None if arguments.inputs is None else _arrays(arguments.inputs),
            atol=arguments.atol,
            rtol=arguments.rtol,
            min_cosine=arguments.min_cosine,
            threads=arguments.threads,
        )
    if arguments.json:
        output.print_json(report.to_dict())
    else:
        print(report)
    return 0 if report.ok else 1


def _arrays(path: Path) -> "dict[str, np.ndarray]":
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except (zipfile.BadZipFile, AttributeError, EOFError, ValueError) as error:
        raise ValueError(f"verify: inputs must be an .npz file of plain arrays; got '{path}'") from error
