"""What a pattern of blocks costs in quality: all-MiniLM-L6-v2 with its real weights, its attention replaced.

transformers' AttentionInterface is the hook. For each pattern: the share of kept blocks, the cosine of the pooled
embedding to dense attention's, the time of the model and of its attention. Texts fill all 512 positions: the READMEs of
packages that the demo needs, as their distributions carry them. In the same run torch's SDPA with the dense mask of the
same pattern says whether our answer is right.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepseek_fast.cli import output, timing

SOURCES = ("torch", "transformers", "numpy", "onnx", "huggingface-hub", "tokenizers", "onnxscript", "tqdm")
TOKENS = 512  # the model's positions
BLOCK = 32  # tokens
NAME = "deepseek_fast_pattern"  # in transformers' table
ROUNDS, QUICK_ROUNDS, QUICK_TEXTS = 5, 2, 2
TOLERANCE = 2e-4  # of hidden states of size 1, f32 through six layers, between ours and the dense mask in torch
DENSE = "dense"
Options = dict[str, Any]


def patterns() -> dict[str, Callable[[Any, Any], Options]]:
    """Keyword arguments of block_sparse_attention from q and k, by name."""
    import deepseek_fast

    def log_strided(q: Any, k: Any) -> Options:
        S = q.shape[2]
        mask = deepseek_fast.local_log_blocks(S, S, block_size=BLOCK, local=2, first=1, is_causal=False)
        return {"block_mask": mask, "block_size": BLOCK}

    def top_blocks(count: int) -> Callable[[Any, Any], Options]:
        def choose(q: Any, k: Any) -> Options:
            mask = deepseek_fast.top_k_blocks(q, k, count, block_size=BLOCK)
            return {"block_mask": mask, "block_size": BLOCK}

        return choose

    blocks = TOKENS // BLOCK
    return {
        DENSE: lambda q, k: {},
        "window, 128 tokens each side": lambda q, k: {"window": (128, 128)},
        "window, 64 tokens each side": lambda q, k: {"window": (64, 64)},
        "4 sinks and window, 64 each side": lambda q, k: {"window": (64, 64), "sinks": 4},
        "4 sinks and window, 32 each side": lambda q, k: {"window": (32, 32), "sinks": 4},
        "local + log-strided blocks": log_strided,
        f"top 8 of {blocks} blocks": top_blocks(8),
        f"top 4 of {blocks} blocks": top_blocks(4),
        f"top 2 of {blocks} blocks": top_blocks(2),
    }


def measure(*, quick: bool = False) -> dict[str, Any]:
    """A row for each pattern."""
    import torch

    from deepseek_fast.cli import demo_model

    ids = texts()[: QUICK_TEXTS if quick else None]
    mask = torch.ones_like(ids)
    with output.quiet():
        model = demo_model.load().model
    with _attention(model) as attention:

        def hidden() -> Any:
            return model(input_ids=ids, attention_mask=mask).last_hidden_state

        rows: dict[str, dict[str, Any]] = {}
        pooled = {}
        for name, options in patterns().items():
            attention.use(options, checked=True)
            answer = hidden().clone()
            kept = sum(attention.kept) / len(attention.kept)
            attention.use(options, in_torch=True)
            difference = float((hidden() - answer).abs().max())
            pooled[name] = demo_model.pooled(answer.numpy(), mask.numpy())
            cosines = (pooled[name] * pooled[DENSE]).sum(1)
            rows[name] = {
                "kept": kept,
                "min_cosine": float(cosines.min()),
                "mean_cosine": float(cosines.mean()),
                "max_difference": difference,
                "attention_ms": [],
            }

        def call(name: str, options: Callable[[Any, Any], Options]) -> Callable[[], None]:
            def run() -> None:
                attention.use(options)
                hidden()
                rows[name]["attention_ms"].append(attention.seconds * 1e3 / len(ids))

            return run

        calls = {name: call(name, options) for name, options in patterns().items()}
        times = timing.interleave(calls, rounds=QUICK_ROUNDS if quick else ROUNDS)
    for name, row in rows.items():
        row |= {"ms": times[name].min * 1e3 / len(ids), "attention_ms": min(row["attention_ms"])}
    return {"texts": len(ids), "tokens": TOKENS, "rows": rows}


def texts() -> Any:
    """(texts, TOKENS) ids, each of one package's description, from its beginning."""
    import torch
    import transformers

    from deepseek_fast.cli import demo_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(demo_model.folder()), local_files_only=True)
    found = []
    for source in SOURCES:
        readme = str(importlib.metadata.metadata(source).get_payload())  # type: ignore[attr-defined]
        ids = tokenizer(readme, truncation=True, max_length=TOKENS)["input_ids"]
        if len(ids) == TOKENS:
            found.append(ids)
    return torch.tensor(found)


def table(data: dict[str, Any]) -> str:
    """A row for each pattern."""
    header = (
        f"MiniLM, {data['texts']} texts of {data['tokens']} tokens",
        "kept",
        "min cosine",
        "mean cosine",
        "model ms",
        "attention ms",
        "to dense mask",
    )
    lines = [
        (
            name,
            f"{row['kept']:.0%}",
            f"{row['min_cosine']:.4f}",
            f"{row['mean_cosine']:.4f}",
            f"{row['ms']:.1f}",
            f"{row['attention_ms']:.2f}",
            f"{row['max_difference']:.1g}",
        )
        for name, row in data["rows"].items()
    ]
    return output.table(header, lines)


def right(data: dict[str, Any]) -> bool:
    return all(row["max_difference"] <= TOLERANCE for row in data["rows"].values())


class _Attention:
    """The model's attention as `use` says; counts kept blocks and seconds since then."""

    def __init__(self) -> None:
        self.use(lambda q, k: {})

    def use(self, options: Callable[[Any, Any], Options], *, checked: bool = False, in_torch: bool = False) -> None:
        """checked: also counts kept blocks, untimed; in_torch: SDPA with the dense mask."""
        self._options, self._checked, self._in_torch = options, checked, in_torch
        self.kept: list[float] = []
        self.seconds = 0.0

    def __call__(
        self, module: Any, q: Any, k: Any, v: Any, attention_mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Any, None]:
        """transformers' protocol: (B, S, H, D) of q, k and v (B, H, S, D). Every text is full: there is no padding."""
        import torch.nn.functional as F

        import deepseek_fast

        if self._in_torch:
            seen = _seen(q, k, self._options(q, k))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling).transpose(1, 2), None
        start = time.perf_counter()
        options = self._options(q, k)
        out = deepseek_fast.block_sparse_attention(q, k, v, scale=scaling, **options)
        self.seconds += time.perf_counter() - start
        if self._checked:
            self.kept.append(_kept_share(_seen(q, k, options)))
        return out.transpose(1, 2), None


def _seen(q: Any, k: Any, options: Options) -> Any:
    """bool (B, H, S, S)."""
    from deepseek_fast.kernels.block_sparse_attention.ref import seen_of

    return seen_of({"q": q, "k": k} | options)


def _kept_share(seen: Any) -> float:
    """Of blocks of BLOCK x BLOCK: those with a pair that counts."""
    blocks = seen.unflatten(-1, (-1, BLOCK)).any(-1).unflatten(-2, (-1, BLOCK)).any(-2)
    return float(blocks.double().mean())


@contextmanager
def _attention(model: Any) -> Iterator[_Attention]:
    """The model's attention is the one it gives, inside a `with`."""
    from transformers import AttentionInterface

    attention, before = _Attention(), model.config._attn_implementation
    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)
    try:
        yield attention
    finally:
        model.set_attn_implementation(before)
