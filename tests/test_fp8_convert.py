"""fp8-convert: what becomes of tensors, index, config.json and other files; what a stopped run leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deepseek_fast
from deepseek_fast import checkpoints, cli
from deepseek_fast.checkpoints import _fp8_convert, fp8_convert
from tests import fp8_checkpoints as ckpt
from tests.fp8_checkpoints import INDEX, QUANTIZATION, SCALE, WEIGHT

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
STATE = ".fp8_convert.json"


@pytest.fixture
def shards() -> list[dict[str, torch.Tensor]]:
    """Two shards of FP8 weights of odd sizes; each scale of the last two lies in the other shard."""
    layer = "model.layers.{}.self_attn.{}.weight"
    one = ckpt.fp8_weight(layer.format(0, "kv_a_proj_with_mqa"), 576, 300)
    two = ckpt.fp8_weight(layer.format(1, "q_a_proj"), 129, 2112) | ckpt.fp8_weight(layer.format(1, "o_proj"), 1, 1)
    moved = ckpt.fp8_weight(layer.format(0, "moved"), 130, 127)
    back = ckpt.fp8_weight(layer.format(1, "back"), 64, 384)
    one |= {"model.embed_tokens.weight": torch.randn(70, 32, dtype=torch.bfloat16)}
    two |= {"model.layers.1.mlp.gate.e_score_correction_bias": torch.randn(7)}
    for name, weight_in, scale_in in ((layer.format(0, "moved"), one, two), (layer.format(1, "back"), two, one)):
        pair = moved | back
        weight_in[name], scale_in[f"{name}_scale_inv"] = pair[name], pair[f"{name}_scale_inv"]
    return [one, two]


@pytest.fixture
def source(tmp_path: Path, shards: list[dict[str, torch.Tensor]]) -> Path:
    config = {"model_type": "deepseek_v3", "torch_dtype": "bfloat16", "quantization_config": QUANTIZATION}
    return ckpt.write(tmp_path / "fp8", shards, config)


@pytest.mark.parametrize("to", DTYPES)
def test_products_are_exact_and_the_rest_stays(source: Path, tmp_path: Path, to: str) -> None:
    before, originals = ckpt.read(source), ckpt.files(source)
    report = fp8_convert(source, tmp_path / "out", to=to)
    found = ckpt.read(tmp_path / "out")
    assert set(found) == {name for name in before if not name.endswith("_scale_inv")}
    for name, x in found.items():
        scale = before.get(f"{name}_scale_inv")
        want = before[name] if scale is None else ckpt.product(before[name], scale).to(DTYPES[to])
        assert x.dtype == want.dtype and torch.equal(ckpt.bits(x), ckpt.bits(want)), name
    assert ckpt.files(source) == originals
    assert (report.to, report.tensors_converted, report.tensors_kept, report.shards_written) == (to, 5, 2, 2)
    assert report.bytes_after == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))


def test_index_config_and_other_files_follow(source: Path, tmp_path: Path) -> None:
    (source / "figures").mkdir()
    (source / "figures" / "a.txt").write_text("figure")
    (source / ".cache").mkdir()
    (source / ".cache" / "b").write_text("cache")
    out = tmp_path / "out"
    assert fp8_convert(source, out).to == "bf16"
    config = json.loads((out / "config.json").read_text())
    assert config == {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
    assert (out / "tokenizer.json").read_text() == '{"a": 1}' and (out / "figures" / "a.txt").read_text() == "figure"
    assert not (out / ".cache").exists()
    _check_index(out)
    back = tmp_path / "back"
    assert fp8_convert(out, back, to="fp8", scale="ue8m0", keep=["*.1.self_attn.o_proj"]).to == "fp8"
    found = json.loads((back / "config.json").read_text())["quantization_config"]
    kept = {"modules_to_not_convert": ["model.layers.1.self_attn.o_proj"], "scale_fmt": "ue8m0"}
    assert found == QUANTIZATION | kept
    _check_index(back)


def _check_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    tensors = {path.name: ckpt.read(path) for path in folder.glob("*.safetensors")}
    assert index["weight_map"] == {name: shard for shard, found in tensors.items() for name in found}
    assert index["metadata"]["total_size"] == sum(x.nbytes for found in tensors.values() for x in found.values())


@pytest.mark.parametrize("to", ["f32", "bf16"])
def test_fp8_survives_a_round_trip(source: Path, tmp_path: Path, to: str) -> None:
    """Powers of two as scales, and a code above half the largest in each block: then the cast finds both again."""
    for path in source.glob("*.safetensors"):
        tensors = ckpt.read(path)
        for name, x in tensors.items():
            if name.endswith("_scale_inv"):
                tensors[name] = torch.exp2(torch.randint(-9, 3, x.shape).float())
        save_file(tensors, path)
    fp8_convert(source, tmp_path / "wide", to=to)
    fp8_convert(tmp_path / "wide", tmp_path / "back", scale="ue8m0")
    before, after = ckpt.read(source), ckpt.read(tmp_path / "back")
    assert ckpt.same(before, after)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["quantization_config"]["scale_fmt"] == "ue8m0"


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_quantizes_as_whole_tensors_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(_fp8_convert, "SLICE", 4096)
    tensors = {"model.layers.0.mlp.down_proj.weight": torch.randn(576, 300).to(dtype)}
    tensors |= {"model.layers.0.mlp.gate.weight": torch.randn(8, 64).to(dtype), "lm_head.weight": torch.randn(9, 64)}
    tensors |= {"model.layers.0.conv.weight": torch.randn(3, 4, 5).to(dtype), "scores": torch.randn(128, 128)}
    tensors |= {"ids.weight": torch.ones(4, 4, dtype=torch.int64), "none.weight": torch.zeros(0, 5)}
    fp8_convert(ckpt.write(tmp_path / "in", [tensors], {"dtype": "bfloat16"}), tmp_path / "out")
    found = ckpt.read(tmp_path / "out")
    name = "model.layers.0.mlp.down_proj.weight"
    codes, scale = deepseek_fast.fp8_quantize_weight(tensors[name])
    assert ckpt.same(found, tensors | {name: codes, f"{name}_scale_inv": scale})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dtype": "bfloat16", "quantization_config": QUANTIZATION}


@pytest.mark.parametrize(("threads", "values"), [(1, 1), (1, 40_000), (3, 1), (3, 1 << 20)])
@pytest.mark.parametrize("to", ["bf16", "fp8"])
def test_same_bytes_whatever_the_slices_and_threads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: Any, threads: int, values: int, to: str
) -> None:
    if to == "fp8":
        fp8_convert(source, tmp_path / "wide", to="f32")
        source = tmp_path / "wide"
    fp8_convert(source, tmp_path / "want")
    monkeypatch.setattr(_fp8_convert, "SLICE", values)
    monkeypatch.setattr(_fp8_convert, "PIECE", max(values, 16))
    num_threads(threads)
    fp8_convert(source, tmp_path / "found")
    assert torch.get_num_threads() == threads
    assert ckpt.files(tmp_path / "want") == ckpt.files(tmp_path / "found")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
def test_reads_scales_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = {WEIGHT: ckpt.fp8_weight(WEIGHT, 300, 40)[WEIGHT], SCALE: torch.tensor([[0.5], [2.0], [0.25]]).to(dtype)}
    fp8_convert(ckpt.write(tmp_path / "in", [pair]), tmp_path / "out")
    want = ckpt.product(pair[WEIGHT], pair[SCALE].float()).bfloat16()
    assert torch.equal(ckpt.read(tmp_path / "out")[WEIGHT], want)


@pytest.mark.parametrize("asked", [None, 64])
def test_block_comes_from_config(tmp_path: Path, asked: int | None) -> None:
    codes, scale = deepseek_fast.fp8_quantize_weight(torch.randn(100, 200), block=(64, 64))
    config = {"text_config": {"quantization_config": QUANTIZATION | {"weight_block_size": [64, 64]}}}
    source = ckpt.write(tmp_path / "in", [{WEIGHT: codes, SCALE: scale}], config)
    assert fp8_convert(source, tmp_path / "out", block=asked, to="f32").block == (64, 64)
    want = ckpt.product(codes, scale, 64).float()
    assert torch.equal(ckpt.read(tmp_path / "out")[WEIGHT], want)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"] == {}
    report = fp8_convert(tmp_path / "out", tmp_path / "back", block=64)
    assert report.block == (64, 64) and ckpt.read(tmp_path / "back")[SCALE].shape == (2, 4)


def test_one_file(tmp_path: Path) -> None:
    pair = ckpt.fp8_weight(WEIGHT, 10, 20)
    save_file(pair, tmp_path / "a.safetensors", metadata={"format": "pt", "made": "here"})
    fp8_convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    fp8_convert(tmp_path / "a.safetensors", tmp_path / "folder")
    want = {WEIGHT: ckpt.product(pair[WEIGHT], pair[SCALE]).bfloat16()}
    assert ckpt.same(ckpt.read(tmp_path / "b.safetensors"), want) and ckpt.same(ckpt.read(tmp_path / "folder"), want)
    assert sorted(ckpt.files(tmp_path / "folder")) == [STATE, "a.safetensors"]
    assert sorted(ckpt.files(tmp_path)) == ["a.safetensors", "b.safetensors", f"folder/{STATE}", "folder/a.safetensors"]
    with ckpt.safe_open(tmp_path / "b.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "made": "here"}


def test_a_shard_of_nothing_but_scales_goes(tmp_path: Path) -> None:
    pair = ckpt.fp8_weight(WEIGHT, 10, 20)
    source = ckpt.write(tmp_path / "in", [{SCALE: pair[SCALE]}, {WEIGHT: pair[WEIGHT]}])
    fp8_convert(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model-00002-of-00002.safetensors"]
    _check_index(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_goes_on_where_it_stopped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out, shard = tmp_path / "out", "model-00001-of-00002.safetensors"

    def stop(name: str, part: float) -> None:
        if name != shard:
            raise error

    with pytest.raises(type(error)):
        fp8_convert(source, out, progress=stop)
    assert sorted(ckpt.files(out)) == [STATE, shard]
    stamp = (out / shard).stat().st_mtime_ns
    (out / "model-00002-of-00002.safetensors.part").write_bytes(b"killed")
    report = fp8_convert(source, out)
    assert (report.shards_written, report.shards_whole) == (1, 1) and (out / shard).stat().st_mtime_ns == stamp
    fp8_convert(source, tmp_path / "at_once")
    assert ckpt.files(out) == ckpt.files(tmp_path / "at_once")
    assert fp8_convert(source, out).shards_whole == 2
    (out / shard).write_bytes((out / shard).read_bytes()[:-1])
    assert fp8_convert(source, out).shards_written == 1
    assert ckpt.files(out) == ckpt.files(tmp_path / "at_once")


def test_a_failing_thread_stops_the_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left"):
        fp8_convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["bf16", "fp8"])
def test_memory_stays_below_two_shards(tmp_path: Path, to: str) -> None:
    """Three shards of 64 MiB of FP8, 128 MiB of bfloat16: below two of the smaller."""
    pair = ckpt.fp8_weight(WEIGHT, 8192, 8192)
    wide = {WEIGHT: ckpt.product(pair[WEIGHT], pair[SCALE]).bfloat16()}
    shard = pair if to == "bf16" else wide
    ckpt.write(tmp_path / "in", [{f"{i}.{name}": x for name, x in shard.items()} for i in range(3)])
    script = (
        "import re, sys, torch; from deepseek_fast.checkpoints import _arithmetic, fp8_convert\n"
        "peak = lambda: int(re.search('VmHWM: *\\t *([0-9]+) kB', open('/proc/self/status').read())[1]) << 10\n"
        "before = peak(); fp8_convert(*sys.argv[1:]); print(peak() - before)"
    )
    words = [sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"]
    grown = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    assert grown < 2 * (64 << 20)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fp8-convert", str(source), str(tmp_path / "out")]) == cli.OK
    captured = capsys.readouterr()
    assert "5 weights to bf16, 2 tensors as they were" in captured.out and captured.err == ""
    words = ["fp8-convert", str(tmp_path / "out"), str(tmp_path / "back"), "--scale", "ue8m0", "--json"]
    assert cli.main([*words, "--keep", "*q_a_proj", "--keep", "*.o_proj.weight"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["to"], found["scale"], found["tensors_converted"]) == ("fp8", "ue8m0", 3)
    assert cli.main(["fp8-convert", str(source), str(source)]) == cli.USER_MISTAKE
    assert capsys.readouterr().err.startswith("deepseek-fast fp8-convert: target must be neither source nor within it;")
    assert checkpoints.KEEP[0] in _help(capsys)


def _help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main(["fp8-convert", "--help"])
    return capsys.readouterr().out
