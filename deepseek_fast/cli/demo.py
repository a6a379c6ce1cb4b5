"""`deepseek-fast demo`: all-MiniLM-L6-v2 from torch to a verified int8 file, and one table of what that brings."""

import argparse
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_fast.bench import model as bench
from deepseek_fast.cli import demo_model, machine, output, timing

BATCH, TOKENS, THREADS = 8, 64, 1
MIN_COSINE = 0.995
INT8_GOAL, FP32_GOAL = 0.70, 0.85  # of ORT's dynamic int8's and of stock ORT fp32's time
ROUNDS = 15  # about 0.4 s each

STOCK, ORT_INT8 = "stock ORT, fp32", "ORT dynamic int8"
TORCH, TORCH_INT8 = "torch, fp32", "torch dynamic int8"
OURS_FP32, OURS = "ours, fp32 optimized, in ORT", "ours, w8a8, in ORT"
OURS_TORCH, OURS_BODY = "ours, w8a8, in torch", "ours, w8a8 file on stock ORT"
# The same model in the other runtime.
TORCH_PARTNER = {STOCK: TORCH, OURS_FP32: TORCH, ORT_INT8: TORCH_INT8, OURS: OURS_TORCH, OURS_BODY: OURS_TORCH}

Forward = Callable[[Any, Any], Any]  # (ids, mask) -> last hidden state, all NumPy


@dataclass(frozen=True)
class Row:
    """One way to run the model."""

    name: str
    forward: Forward
    bytes: int


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("demo", help="MiniLM from torch to a verified int8 file", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: ./demo-output")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where every answer is right; the goals of time are printed, not enforced: machines differ."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads and ORT's would fight
    demo_model.folder()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with output.Progress(7) as progress:
        rows, checks, files = prepare(arguments.out, progress)
        progress.step("timing, all in turn")
        result = measure(rows, progress.tick)
    result |= {"files": files, "checks": checks, "goals": goals(result["rows"])}
    (arguments.out / "demo.json").write_text(json.dumps(result, indent=2) + "\n")
    if arguments.json:
        output.print_json(result)
    else:
        print(text(result))
    return 0 if all(check["ok"] for check in checks) and result["goals"]["cosine"]["ok"] else 1


def prepare(out: Path, progress: output.Progress) -> tuple[list[Row], list[dict[str, Any]], list[str]]:
    """(ways to run, verifications, files written)."""
    progress.step("loading torch and the model")
    import torch

    from deepseek_fast import ort, quantization
    from deepseek_fast.onnx import optimize

    torch.set_num_threads(THREADS)
    module = demo_model.load()
    fp32, fast, w8a8 = out / "minilm-fp32.onnx", out / "minilm-fp32-optimized.onnx", out / "minilm-w8a8.onnx"
    ort_int8 = out / "minilm-ort-int8.onnx"
    progress.step("exporting to ONNX")
    demo_model.export(module, fp32)
    progress.step("optimizing and quantizing")
    optimize(fp32, output=fast)
    optimize(fp32, quantize="w8a8", output=w8a8)
    progress.step("ONNX Runtime's own int8")
    bench.ort_dynamic_int8(fp32, ort_int8)
    progress.step("torch's int8 and ours in torch")
    torch_int8 = demo_model.torch_dynamic_int8(module)
    ours_torch = quantization.quantize_linears(module)
    rows = [
        Row(STOCK, _stock(fp32), fp32.stat().st_size),
        Row(ORT_INT8, _stock(ort_int8), ort_int8.stat().st_size),
        Row(TORCH, _torch(module), _module_bytes(module)),
        Row(TORCH_INT8, _torch(torch_int8), _module_bytes(torch_int8)),
        Row(OURS_FP32, _session(ort.session(fast, threads=THREADS)), fast.stat().st_size),
        Row(OURS, _session(ort.session(w8a8, threads=THREADS)), w8a8.stat().st_size),
        Row(OURS_TORCH, _torch(ours_torch), _module_bytes(ours_torch)),
        Row(OURS_BODY, _stock(w8a8), w8a8.stat().st_size),
    ]
    progress.step("verifying")
    checks = [_verified(fp32, fast), _verified(fp32, w8a8)]
    return rows, checks, [str(path) for path in (fp32, fast, w8a8, ort_int8, out / "demo.json")]


def measure(rows: list[Row], tick: Callable[[], Any]) -> dict[str, Any]:
    """Answers on the sentences, then times on random tokens, interleaved."""
    import numpy as np

    ids, mask = demo_model.tokens(demo_model.SENTENCES)
    hidden = {row.name: row.forward(ids, mask) for row in rows}
    words = mask.astype(bool)
    cosine = _min_cosines(hidden, mask)
    short_ids, short_mask = demo_model.tokens(demo_model.SHORT_SENTENCES)
    short_cosine = _min_cosines({row.name: row.forward(short_ids, short_mask) for row in rows}, short_mask)

    generator = np.random.default_rng()  # fresh inputs each run
    batch = generator.integers(1000, 30000, (BATCH, TOKENS))
    ones = np.ones_like(batch)
    calls = {row.name: (lambda forward=row.forward: forward(batch, ones)) for row in rows}
    times = timing.interleave(calls, rounds=ROUNDS, after_round=tick)

    measured = {}
    for row in rows:
        partner = TORCH_PARTNER.get(row.name)
        difference = None if partner is None else float(abs(hidden[row.name] - hidden[partner])[words].max())
        measured[row.name] = {
            "ms": times[row.name].median * 1e3,
            "ms_min": times[row.name].min * 1e3,
            "spread": times[row.name].spread,
            "bytes": row.bytes,
            "min_cosine": cosine[row.name],
            "min_cosine_short": short_cosine[row.name],
            "torch_partner": partner,
            "max_difference_to_torch": difference,
        }
    return {"rows": measured, "batch": BATCH, "tokens": TOKENS, "machine": machine.describe(THREADS)}


def _min_cosines(hidden: dict[str, Any], mask: Any) -> dict[str, float]:
    """The least cosine of a pooled sentence to torch fp32's, by row."""
    reference = demo_model.pooled(hidden[TORCH], mask)
    return {name: float((demo_model.pooled(value, mask) * reference).sum(1).min()) for name, value in hidden.items()}


def goals(rows: dict[str, Any]) -> dict[str, Any]:
    """What must be reached, from medians of the same run."""
    cosine = min(rows[name]["min_cosine"] for name in (OURS_FP32, OURS, OURS_TORCH, OURS_BODY))
    int8, fp32 = rows[OURS]["ms"] / rows[ORT_INT8]["ms"], rows[OURS_FP32]["ms"] / rows[STOCK]["ms"]
    return {
        "cosine": {"value": cosine, "limit": MIN_COSINE, "ok": cosine >= MIN_COSINE},
        "int8_time": {"value": int8, "limit": INT8_GOAL, "ok": int8 <= INT8_GOAL},
        "fp32_time": {"value": fp32, "limit": FP32_GOAL, "ok": fp32 <= FP32_GOAL},
    }


def text(result: dict[str, Any]) -> str:
    """The table, the goals, the machine and the files."""
    header = ("all-MiniLM-L6-v2", "ms", "spread", "MB", "min cosine", "short", "torch - ORT")
    lines = []
    for name, row in result["rows"].items():
        difference = row["max_difference_to_torch"]
        lines.append(
            (
                name,
                f"{row['ms']:.1f}",
                f"{row['spread']:.0%}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['min_cosine']:.4f}",
                f"{row['min_cosine_short']:.3f}",
                "" if difference is None else f"{difference:.2g}",
            )
        )
    cosine, int8, fp32 = (result["goals"][name] for name in ("cosine", "int8_time", "fp32_time"))
    verdicts = [
        f"{_word(cosine)}  min pooled cosine to fp32 {cosine['value']:.4f}, must be >= {MIN_COSINE}",
        f"{_word(int8, 'MISS')}  time of w8a8 {int8['value']:.2f} x ORT dynamic int8, goal <= {INT8_GOAL:.2f}",
        f"{_word(fp32, 'MISS')}  time of fp32 {fp32['value']:.2f} x stock ORT, goal <= {FP32_GOAL:.2f}",
        *(f"{_word(check)}  verify {check['file']}: {check['summary']}" for check in result["checks"]),
    ]
    explanation = (
        f"ms: median of {ROUNDS} interleaved runs of {BATCH} x {TOKENS} tokens, {THREADS} thread; spread: middle half "
        f"over median. Cosine: {len(demo_model.SENTENCES)} sentences, mean-pooled, to torch fp32; short: "
        f"{len(demo_model.SHORT_SENTENCES)} of one to four words. torch - ORT: largest "
        "difference of the last hidden state between a row and the same model in torch."
    )
    files = "files: " + ", ".join(result["files"])
    return "\n".join(
        [output.table(header, lines), "", explanation, machine.line(result["machine"]), "", *verdicts, "", files]
    )


def _word(check: dict[str, Any], otherwise: str = "FAIL") -> str:
    """FAIL: a wrong answer; MISS: a goal of time, which depends on the machine."""
    return "PASS" if check["ok"] else otherwise


def _stock(path: Path) -> Forward:
    from onnxruntime import InferenceSession

    return _session(InferenceSession(str(path), bench.session_options(THREADS), providers=["CPUExecutionProvider"]))


def _session(session: Any) -> Forward:
    names = [value.name for value in session.get_inputs()]
    return lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))[0]


def _torch(module: Any) -> Forward:
    import torch

    def forward(ids: Any, mask: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

    return forward


def _module_bytes(module: Any) -> int:
    import torch

    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()


def _verified(reference: Path, candidate: Path) -> dict[str, Any]:
    from deepseek_fast.onnx import verify

    report = verify(reference, candidate)
    verdict = str(report).splitlines()[-1]
    return {"file": candidate.name, "ok": report.ok, "summary": verdict, "report": report.to_dict()}
