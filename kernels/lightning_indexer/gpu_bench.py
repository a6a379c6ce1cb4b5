"""The indexer's measured rows on GPUs, and what tensor cores may add to the error of its logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.gpu.cases import Bench, Goal, Peer
from deepseek_fast.kernels.lightning_indexer import ref

PAGE = 64  # tokens
TOP = 2048
CHECKED = 32  # queries that are checked: more than 16, so that logits are made by the kernel that is measured
AT_A_TIME = 4  # of which float64 has all heads' dot products
CALC_DIFF = 5e-6  # DeepGEMM's limit for its float32 logits, against the same codes
# A product of e4m3 numbers is cut to 13 bits below the largest of the 33 terms of a step of 32 (DeepSeek-V3, section
# 3.5.2: 14 bits are kept); one of float16, of steps of 16, to 23.
STEPS = {True: (32, 2.0**-13), False: (16, 2.0**-23)}


def chip_error(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, fp8: bool) -> Tensor:
    """What tensor cores add to ref.bound, (s_q, s_kv): each step of each dot product cuts its terms and its sum."""
    step, unit = STEPS[fp8]
    sizes = q.double().abs() @ k.double().abs().T  # (s_q, H, s_kv)
    cut = -(-q.shape[-1] // step) * (step + 1) * unit
    return cut * (weights.double().abs()[..., None] * sizes).sum(1) * k_scale.double().abs()


def calc_diff(got: Tensor, want: Tensor) -> float:
    """1 - 2 <x, y> / (|x|^2 + |y|^2), DeepGEMM's measure, of what is seen."""
    seen = ~want.isneginf()
    x, y = got.double()[seen], want[seen]
    return float(1 - 2 * (x * y).sum() / (x.square() + y.square()).sum())


def _codes(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(torch.float8_e4m3fn)


def _dense(s_q: int, s_kv: int, H: int) -> dict[str, Any]:
    row = torch.arange(s_q, device="cuda", dtype=torch.int32)
    return {
        "q": _codes(s_q, H, 128),
        "k": _codes(s_kv, 128),
        "k_scale": torch.rand(s_kv, device="cuda") + 0.5,
        "weights": torch.randn(s_q, H, device="cuda") * (H * 128) ** -0.5,
        "top_k": TOP,
        "ks": torch.zeros_like(row),
        "ke": row + 1 + s_kv - s_q,  # causal
    }


def _dense_error(inputs: dict[str, Any], result: Tensor) -> float:
    """Logits within DeepGEMM's limit of float64, and the selection exactly theirs; of the last queries."""
    some = {n: inputs[n][-CHECKED:] for n in ("q", "weights", "ks", "ke")} | {n: inputs[n] for n in ("k", "k_scale")}
    logits = deepseek_fast.fp8_mqa_logits(**some)
    if not torch.equal(ref.topk_indices_ref(logits.cpu(), TOP), result[-CHECKED:].cpu()):
        return torch.inf
    worst = 0.0
    for i in range(0, CHECKED, AT_A_TIME):
        part = slice(i, i + AT_A_TIME)
        dots = some["q"][part].double() @ some["k"].double().T
        want = (some["weights"][part].double()[..., None] * dots.clamp_min(0)).sum(1) * some["k_scale"].double()
        want = want.masked_fill(torch.arange(want.shape[1], device="cuda") >= some["ke"][part, None], -torch.inf)
        worst = max(worst, calc_diff(logits[part], want))
    return worst / CALC_DIFF


def _paged(b: int, context: int, H: int) -> dict[str, Any]:
    pages = context // PAGE
    cache = torch.empty(b * pages, PAGE, 1, 132, dtype=torch.uint8, device="cuda")
    rows = cache.view(b * pages, PAGE * 132)
    rows[:, : PAGE * 128] = torch.randint(0, 0x78, (b * pages, PAGE * 128), dtype=torch.uint8, device="cuda")
    rows[:, PAGE * 128 :].view(torch.float32).uniform_(0.5, 1.5)
    return {
        "q": _codes(b, 1, H, 128),
        "cache": cache,
        "weights": torch.randn(b, H, device="cuda"),
        "context_lens": torch.full((b,), context, dtype=torch.int32, device="cuda"),
        "block_table": torch.randperm(b * pages, device="cuda").reshape(b, pages).int(),
        "top_k": TOP,
    }


def _paged_error(inputs: dict[str, Any], result: Tensor) -> float:
    """The same of the first requests."""
    some = {n: inputs[n][:AT_A_TIME] for n in ("q", "weights", "context_lens", "block_table")}
    context = some["block_table"].shape[1] * PAGE
    logits = deepseek_fast.fp8_paged_mqa_logits(cache=inputs["cache"], **some, max_context_len=context)
    if not torch.equal(ref.topk_indices_ref(logits.cpu(), TOP), result[:AT_A_TIME, 0].cpu()):
        return torch.inf
    worst = 0.0
    for i in range(AT_A_TIME):
        pages = inputs["cache"][some["block_table"][i].long()].flatten(1)
        k = pages[:, : PAGE * 128].reshape(-1, 128).view(torch.float8_e4m3fn).double()
        scale = pages[:, PAGE * 128 :].contiguous().view(torch.float32).flatten().double()
        want = (some["weights"][i].double() @ (some["q"][i, 0].double() @ k.T).clamp_min(0)) * scale
        worst = max(worst, calc_diff(logits[i], want))
    return worst / CALC_DIFF


def _scores(rows: int, n: int) -> dict[str, Any]:
    return {"scores": torch.randn(rows, n, device="cuda"), "k": TOP}


def _scores_error(inputs: dict[str, Any], result: Tensor) -> float:
    """0 for the very places."""
    want = ref.topk_indices_ref(inputs["scores"][:CHECKED].cpu(), TOP)
    return 0.0 if torch.equal(result[:CHECKED].cpu(), want) else torch.inf


def _topk(rows: int, n: int, inputs: dict[str, Any]) -> Callable[[], Any]:
    """torch.topk of ready logits."""
    scores = inputs["scores"] if "scores" in inputs else torch.randn(rows, n, device="cuda")
    return lambda: torch.topk(scores, TOP, sorted=False)


def _prefill(s_q: int, s_kv: int, H: int) -> Bench:
    return Bench(
        f"indexer {s_q}x{s_kv}, {H} heads, top {TOP}",
        partial(_dense, s_q, s_kv, H),
        deepseek_fast.lightning_indexer,
        _dense_error,
        bytes=s_q * (H * 132 + TOP * 4) + s_kv * 132,
        flops=2 * s_q * s_kv * H * 128,
        peers=(Peer("torch.topk", partial(_topk, s_q, s_kv)),),
        goal=Goal(5.0, "torch.topk"),
    )


def _decode(b: int, context: int, H: int) -> Bench:
    return Bench(
        f"indexer, paged, {b} requests of {context}, {H} heads, top {TOP}",
        partial(_paged, b, context, H),
        deepseek_fast.lightning_indexer_paged,
        _paged_error,
        bytes=b * (context * 132 + TOP * 4),
        flops=2 * b * context * H * 128,
        peers=(Peer("torch.topk", partial(_topk, b, context)),),
    )


def _selection(rows: int, n: int) -> Bench:
    return Bench(
        f"top {TOP} of {rows}x{n}",
        partial(_scores, rows, n),
        deepseek_fast.topk_indices,
        _scores_error,
        bytes=4 * rows * (n + TOP),
        flops=0,
        peers=(Peer("torch.topk", partial(_topk, rows, n)),),
        goal=Goal(1.0, "torch.topk"),
    )


BENCH = (
    _prefill(4096, 65536, 64),
    _prefill(4096, 65536, 32),
    _decode(256, 65536, 64),
    *(_selection(rows, n) for n in (65536, 131072) for rows in (1, 64, 1024)),
)
