"""`deepseek-fast fp8-convert IN OUT`: a safetensors checkpoint from DeepSeek's block-scaled FP8 to bf16, or back."""

import argparse
from pathlib import Path
from typing import Any

from deepseek_fast.cli import output

RULES = """\
IN is a folder with model.safetensors, or with model.safetensors.index.json and its shards; or one *.safetensors file.
It is never changed. OUT is a new folder, or one that the same command began: its whole shards stay, the rest is written
(after Ctrl-C, say). Where IN is one file, OUT may be a new *.safetensors file.

DeepSeek's layout: X.weight in float8_e4m3fn (N, K) beside X.weight_scale_inv in float32 (ceil(N / 128), ceil(K / 128)),
in the same shard or another; weight * scale_inv, block by block, is the weight.

--to bf16, f16, f32   every tensor with a scale is multiplied out, its scale leaves; all others stay bit for bit.
--to fp8              every bf16, f16 or f32 tensor of two dimensions named *.weight is quantized, but for these,
{keep}
                      and what a --keep matches; all others stay bit for bit.

config.json gains or loses its quantization_config, and its torch_dtype follows; with --keep it lists what was kept as
modules_to_not_convert. The index is made anew. Every other file is copied, .git and .cache excepted.
OUT/.fp8_convert.json says what was asked for; it may be removed once all is done."""


def add(subparsers: Any) -> None:
    """Adds the command."""
    from deepseek_fast.checkpoints import KEEP

    lines = [" ".join(KEEP[i : i + 5]) for i in range(0, len(KEEP), 5)]
    parser = subparsers.add_parser(
        "fp8-convert",
        help="convert a safetensors checkpoint from DeepSeek's FP8 to bf16, or back",
        description=__doc__,
        epilog=RULES.format(keep="\n".join(" " * 22 + line for line in lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="a folder, or a *.safetensors file")
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder, or one that was begun")
    parser.add_argument(
        "--to",
        choices=("bf16", "f16", "f32", "fp8"),
        help="default: bf16 where IN holds FP8 weights with scales, fp8 otherwise",
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="rows and columns that share a scale (default: config.json's weight_block_size, else 128)",
    )
    parser.add_argument(
        "--scale", choices=("f32", "ue8m0"), default="f32", help="with --to fp8; ue8m0: powers of two, in float32 too"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help='with --to fp8: weights that stay as they are, "model.layers.0.*"; may be repeated',
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where OUT is whole."""
    from deepseek_fast.checkpoints import fp8_convert

    with output.Progress(1) as progress:
        progress.step(f"reading {arguments.input.name}")
        report = fp8_convert(
            arguments.input,
            arguments.output,
            to=arguments.to,
            block=arguments.block,
            scale=arguments.scale,
            keep=arguments.keep,
            progress=progress.show,
        )
    if arguments.json:
        output.print_json(report.to_dict())
    else:
        count = f"{report.tensors_converted} weights to {report.to}, {report.tensors_kept} tensors as they were"
        whole = f"; {report.shards_whole} shards were whole already" if report.shards_whole else ""
        size = f"{report.bytes_after / 1e6:.1f} MB, was {report.bytes_before / 1e6:.1f} MB"
        print(f"{report.target}: {count}; {size}{whole}")
    return 0
