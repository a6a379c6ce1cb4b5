"""fp8-convert refuses what is broken: one sentence, exit code 2 (or 3 for the disk), nothing that looks finished."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepseek_fast import cli
from deepseek_fast.checkpoints import fp8_convert
from tests import fp8_checkpoints as ckpt
from tests.fp8_checkpoints import INDEX, QUANTIZATION, SCALE, WEIGHT

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return ckpt.small(tmp_path / "in")


def _refused(source: Path, target: Path, *words: str, match: str, code: int = cli.USER_MISTAKE) -> None:
    """Through the command: its exit code, and one sentence that says this; nothing is left that looks finished."""
    before = ckpt.files(target) if target.is_dir() else {}
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(cli, "_say", lambda command, text, code: said.append(text) or code)
        found = cli.main(["fp8-convert", str(source), str(target), *words])
    assert found == code, said
    assert len(said) == 1 and said[0].startswith("fp8_convert: ") and "; got " in said[0] and match in said[0], said
    assert "\n" not in said[0] and len(said[0]) <= cli.SENTENCE_LIMIT
    after = ckpt.files(target) if target.is_dir() else {}
    assert set(after) - set(before) <= {".fp8_convert.json"}


def _file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "8 bytes at least"),
    "seven bytes": (b"1234567", "8 bytes at least"),
    "negative length": (_file({}, length=2**64 - 1), "a header of 18446744073709551615 bytes"),
    "long length": (_file({}, length=3), "have a header that fits into its 10 bytes; got a header of 3 bytes"),
    "no JSON": (_file(b"{'a': 1}"), "have a header in JSON"),
    "no UTF-8": (_file(b'{"\xff": 1}'), "have a header in JSON"),
    "deep JSON": (_file(b"[" * 200_000), "have a header in JSON"),
    "repeated name": (_file(b'{"a": 1, "a": 2}'), "have a header in JSON"),
    "a list": (_file([]), "have a JSON object as its header"),
    "metadata": (_file({"__metadata__": {"a": 1}}), "map names to strings"),
    "no fields": (_file({"a": {}}), "have dtype, shape, data_offsets"),
    "no object": (_file({"a": 1}), "have dtype, shape, data_offsets"),
    "dtype": (_file({"a": F32 | {"dtype": "F31"}}, bytes(8)), "have a dtype of"),
    "dtype of a list": (_file({"a": F32 | {"dtype": ["F32"]}}, bytes(8)), "have a dtype of"),
    "negative shape": (_file({"a": F32 | {"shape": [-2, -1]}}, bytes(8)), "have a shape of whole numbers"),
    "float shape": (_file({"a": F32 | {"shape": [2.0]}}, bytes(8)), "have a shape of whole numbers"),
    "bool shape": (_file({"a": F32 | {"shape": [True, 2]}}, bytes(8)), "have a shape of whole numbers"),
    "huge shape": (_file({"a": F32 | {"shape": [2**62, 2**62]}}, bytes(8)), "for F32 of shape"),
    "offsets": (_file({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)), "a begin and an end"),
    "negative offsets": (_file({"a": F32 | {"data_offsets": [-8, 0]}}, bytes(8)), "a begin and an end"),
    "three offsets": (_file({"a": F32 | {"data_offsets": [0, 8, 8]}}, bytes(8)), "a begin and an end"),
    "past the end": (_file({"a": F32}, bytes(7)), "end within the file's 7 bytes of tensors; got 8"),
    "byte count": (_file({"a": F32 | {"shape": [3]}}, bytes(8)), "have 12 bytes, for F32 of shape (3,); got 8"),
    "half bytes": (_file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)), "have 1.5 bytes"),
    "overlap": (_file({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "begin at 8"),
    "gap": (_file({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, bytes(20)), "begin at 8"),
    "gap at the start": (_file({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "begin at 0"),
    "more behind": (_file({"a": F32}, bytes(9)), "end with its last tensor"),
    "nothing to do": (_file({"a": F32}, bytes(8)), "hold a 2-D weight to quantize at least"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file(tmp_path: Path, name: str) -> None:
    data, match = FILES[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    _refused(path, tmp_path / "out", match=match)
    _refused(path, tmp_path / "out.safetensors", match=match)
    assert sorted(ckpt.files(tmp_path)) == ["a.safetensors"]


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_truncated_file(source: Path, tmp_path: Path, kept: int) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    _refused(source, tmp_path / "out", match="model.safetensors")


def _without(names: tuple[str, ...] = (), **changed: torch.Tensor) -> Callable[[Path], None]:
    """Takes tensors out of the small checkpoint, or gives weight or scale another value."""

    def change(source: Path) -> None:
        tensors = ckpt.read(source)
        for key, x in changed.items():
            tensors[{"weight": WEIGHT, "scale": SCALE}[key]] = x
        save_file({name: x for name, x in tensors.items() if name not in names}, source / "model.safetensors")

    return change


def _json(name: str, text: str) -> Callable[[Path], None]:
    return lambda source: (source / name).write_text(text) and None


def _map(weight_map: Any, **more: Any) -> Callable[[Path], None]:
    return _json(INDEX, json.dumps({"weight_map": weight_map, **more}))


ONE, TWO = torch.ones(2, 2), torch.tensor([[1.0, 1.0], [1.0, 2.0]])
SHARD = "model.safetensors"
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weight": (_without((WEIGHT,)), "have its weight in the checkpoint"),
    "no scale": (_without((SCALE,)), f"have its scale in the checkpoint; got no '{SCALE}'"),
    "scale's shape": (
        _without(scale=torch.ones(2, 1)),
        "have shape (2, 2), one value a block of 128 x 128; got (2, 1)",
    ),
    "scale's dimensions": (_without(scale=torch.ones(4)), "have shape (2, 2)"),
    "integer scale": (_without(scale=ONE.int()), "be one of F32, BF16, F16, F8_E8M0; got I32"),
    "negative scale": (_without(scale=-TWO), "be finite and above zero"),
    "zero scale": (_without(scale=TWO - 1), "be finite and above zero"),
    "NaN scale": (_without(scale=TWO * float("nan")), "be finite and above zero"),
    "infinite scale": (_without(scale=TWO * float("inf")), "be finite and above zero"),
    "NaN e8m0 scale": (_without(scale=(TWO * float("nan")).to(torch.float8_e8m0fnu)), "be finite and above zero"),
    "bf16 weight": (_without(weight=torch.ones(192, 160).bfloat16()), "be F8_E4M3 of 2 dimensions"),
    "3-D weight": (_without(weight=torch.ones(2, 3, 4).to(torch.float8_e4m3fn)), "be F8_E4M3 of 2 dimensions"),
    "no file": (lambda source: (source / SHARD).unlink(), f"with {INDEX} or one file; got no 'model.safetensors'"),
    "index no JSON": (_json(INDEX, "{"), "be JSON"),
    "index a list": (_json(INDEX, "[]"), "be a JSON object"),
    "index empty": (_json(INDEX, "{}"), "have a weight_map"),
    "index of numbers": (_map({WEIGHT: 1}), "name shards"),
    "index outside": (_map({WEIGHT: "../in/model.safetensors"}), "name shards"),
    "index absolute": (_map({WEIGHT: "/model.safetensors"}), "name shards"),
    "index's metadata": (_map({WEIGHT: SHARD}, metadata=1), "have an object as its metadata"),
    "missing shard": (_map({WEIGHT: "b.safetensors"}), "with the shard that"),
    "missing tensor": (_map({WEIGHT: SHARD, "b": SHARD}), "hold the tensor 'b' that model.safetensors.index.json says"),
    "config no JSON": (_json("config.json", "no"), "config.json must be JSON"),
    "config's block": (
        _json("config.json", json.dumps({"quantization_config": QUANTIZATION | {"weight_block_size": [0, 128]}})),
        "have a weight_block_size of two whole numbers above zero",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_broken_checkpoint(source: Path, tmp_path: Path, name: str) -> None:
    change, match = CHANGES[name]
    change(source)
    _refused(source, tmp_path / "out", match=match)
    assert not (tmp_path / "out").exists()


def test_a_tensor_in_two_shards(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / SHARD, source / "b.safetensors")
    _map({WEIGHT: SHARD, SCALE: "b.safetensors"})(source)
    _refused(source, tmp_path / "out", match="lie in one shard")


def test_sources_and_targets(source: Path, tmp_path: Path) -> None:
    _refused(tmp_path / "none", tmp_path / "out", match="source must exist")
    _refused(source / "tokenizer.json", tmp_path / "out", match="be a folder or a file *.safetensors")
    for target in (source, source / "out", tmp_path / "x" / ".." / "in"):
        _refused(source, target, match="be neither source nor within it")
    (tmp_path / "link").symlink_to(source)
    _refused(source, tmp_path / "link", match="be neither source nor within it")
    _refused(source, tmp_path / "no" / "out", match="lie in a folder that exists")
    _refused(source, tmp_path, match="be empty or begun by fp8_convert; got 'in'")
    (tmp_path / "file").write_text("mine")
    _refused(source, tmp_path / "file", match="be a folder, new or empty")
    one = source / SHARD
    _refused(one, one, match="be neither source nor within it")
    (tmp_path / "b.safetensors").write_text("mine")
    _refused(one, tmp_path / "b.safetensors", match="be a new file")
    _refused(one, tmp_path / "no" / "b.safetensors", match="lie in a folder that exists")
    assert (tmp_path / "b.safetensors").read_text() == (tmp_path / "file").read_text() == "mine"


def test_arguments(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _refused(source, out, "--block", "0", match="block must be None or a whole number above zero; got 0")
    _refused(source, out, "--keep", "*", match="keep must be left out where to is not fp8; got ['*']")
    _refused(source, out, "--scale", "ue8m0", match="scale must be left out where to is not fp8")
    _refused(source, out, "--to", "fp8", match="hold no FP8 weights where to is fp8")
    (source / "config.json").write_text(json.dumps({"quantization_config": QUANTIZATION}))
    _refused(source, out, "--block", "64", match="block must be as config.json has it, [128, 128]; got 64")
    fp8_convert(source, tmp_path / "wide")
    wide = tmp_path / "wide"
    _refused(wide, out, "--keep", "lm_hed", match="keep must match the name of a tensor; got 'lm_hed'")
    _refused(wide, out, "--block", "48", match="block must be a multiple of 32 where to is fp8; got 48")
    _refused(wide, out, "--to", "f32", match="hold an FP8 weight with its scale X_scale_inv at least")
    (wide / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    _refused(wide, out, match="have no quantization_config where to is fp8")
    for wrong, error in ({"to": "int8"}, ValueError), ({"scale": "e8"}, ValueError), ({"keep": "a"}, TypeError):
        with pytest.raises(error, match=r"^fp8_convert: .* must be .*; got "):
            fp8_convert(source, out, **wrong)  # type: ignore[arg-type]
    assert cli.main(["fp8-convert", str(source), str(out), "--block", "0"]) == cli.USER_MISTAKE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    x = torch.ones(130, 10)
    x[129, 3] = value
    _refused(ckpt.write(tmp_path / "in", [{WEIGHT: x}]), tmp_path / "out", match=f"tensor '{WEIGHT}' must")


def test_what_float16_cannot_hold(source: Path, tmp_path: Path) -> None:
    _without(scale=TWO * 1e5)(source)
    _refused(source, tmp_path / "out", "--to", "f16", match="fit into float16: use bf16")


def test_another_run_into_the_same_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fp8_convert(source, out)
    _refused(source, out, "--to", "f32", match="be empty or begun with the same arguments")
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _refused(source, out, match="be written by one run at a time")
    finally:
        os.close(lock)
    os.utime(source / "tokenizer.json", (1, 1))
    _refused(source, out, match="source must be as it was when target was begun")
    (out / ".fp8_convert.json").write_text("{}")
    _refused(source, out, match="hold a .fp8_convert.json that can be read")


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    _refused(source, tmp_path / "out", match="bytes free; got 1048576", code=cli.MACHINE_PROBLEM)
    target = tmp_path / "b.safetensors"
    _refused(source / SHARD, target, match="bytes free; got 1048576", code=cli.MACHINE_PROBLEM)
    assert not (tmp_path / "out").exists() and not target.exists()


def test_a_source_that_shrinks_meanwhile(tmp_path: Path) -> None:
    many = {f"{i}.weight": torch.randn(256, 256) for i in range(64)}
    source = ckpt.write(tmp_path / "in", [many])

    def shrink(name: str, part: float) -> None:
        os.truncate(source / SHARD, 60_000)

    with pytest.raises(ValueError, match=r"^fp8_convert: model.safetensors must stay as it is while it is read"):
        fp8_convert(source, tmp_path / "out", progress=shrink)
    assert sorted(ckpt.files(tmp_path / "out")) == [".fp8_convert.json"]


def test_a_source_that_changes_meanwhile(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^fp8_convert: source must be as it was when target was begun"):
        fp8_convert(source, tmp_path / "out", progress=lambda name, part: os.utime(source / SHARD, (1, 1)))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("seed", range(8))
def test_no_change_of_bytes_is_a_crash(source: Path, tmp_path: Path, seed: int) -> None:
    path, draw = source / SHARD, random.Random(seed)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(50):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(header)] = draw.choice(b'0123456789-[]{}",:.eF8_\x00\xff')
        path.write_bytes(changed[: draw.choice((None, None, draw.randrange(len(data))))])
        with contextlib.suppress(ValueError):
            fp8_convert(path, tmp_path / "out.safetensors", to=draw.choice(("bf16", "fp8")))
            (tmp_path / "out.safetensors").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
