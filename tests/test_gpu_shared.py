"""What the GPU kernels share, as far as no GPU and no interpreter is needed: checks, tables, tuning, the gate."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import deepseek_fast
from deepseek_fast.gpu import checks, launch, register, tiles, tune
from deepseek_fast.gpu.cases import Expect
from deepseek_fast.gpu.tiles import Row, Table

OP = "int8_cast"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(tiles, "TABLES", {})
    rows = (
        Row({"BLOCK_M": 16}, M=16, why="few rows"),
        Row({"BLOCK_M": 64}, archs=(90, 100), why="wgmma"),
        Row({"BLOCK_M": 128}, why="otherwise"),
    )
    return Table("some_op", "M N", rows)


@pytest.mark.parametrize(
    ("arch", "M", "want"), [(80, 16, 16), (80, 17, 128), (90, 17, 64), (103, 17, 64), (121, 17, 128), (75, 17, 128)]
)
def test_the_first_row_that_holds_is_taken(table: Table, arch: int, M: int, want: int) -> None:
    with launch.assuming(arch):
        assert table.choose(M=M, N=5) == {"BLOCK_M": want}


def test_tuning_keeps_the_fastest_choice_for_sizes_of_the_same_power_of_two(
    table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "tune.json"
    monkeypatch.setattr(tiles, "cache_file", lambda: kept)
    monkeypatch.setattr(tiles, "_tuned", lambda: json.loads(kept.read_text()) if kept.exists() else {})
    monkeypatch.setattr(tiles._tuned, "cache_clear", lambda: None, raising=False)
    chosen: list[int] = []
    with launch.assuming(80):
        found = tune._tune(
            lambda: chosen.append(table.choose(M=100, N=1000)["BLOCK_M"]),
            lambda call: (call(), {16: 1.0, 128: 2.0}[chosen[-1]])[1],
        )
        assert found == {"some_op M=128 N=1024": {"BLOCK_M": 16}}
        assert table.choose(M=65, N=1024) == {"BLOCK_M": 16}
        assert table.choose(M=64, N=1024) == {"BLOCK_M": 128}


def test_tuning_keeps_nothing_that_is_as_fast_as_the_table(table: Table) -> None:
    with launch.assuming(80):
        assert tune._tune(lambda: table.choose(M=100, N=1), lambda call: (call(), 1.0)[1]) == {}


def test_tuning_refuses_a_function_without_choices() -> None:
    with pytest.raises(RuntimeError, match="tune: function must launch a kernel that has a choice of tiles; got none"):
        tune._tune(lambda: None, lambda call: 1.0)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_tuning_without_cuda_names_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="tune: torch must be built with CUDA; got"):
        deepseek_fast.tune(deepseek_fast.int8_cast, torch.ones(2, 2))


def overload() -> Any:
    return getattr(torch.ops.deepseek_fast, OP).default if deepseek_fast.int8_cast else None


def test_a_check_gives_the_cpu_ops_sentence_and_computes_nothing() -> None:
    with pytest.raises(RuntimeError, match="int8_cast: x must be float32, bfloat16 or float16; got dtype int64"):
        checks.check(overload(), (torch.ones(2, 3, dtype=torch.int64),), {})
    checks.check(overload(), (torch.empty(1 << 20, 1 << 20, device="meta"),), {})  # 4 TiB
    q, _ = deepseek_fast.int8_cast(torch.ones(2, 3))  # checked and computed again
    assert q.tolist() == [[127] * 3] * 2


def test_a_call_like_one_that_passed_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check(overload(), (torch.ones(2, 3),), {})
    monkeypatch.setattr(checks, "_only_check", lambda: pytest.fail("checked again"))
    checks.check(overload(), (torch.zeros(2, 3),), {})
    with pytest.raises(pytest.fail.Exception):
        checks.check(overload(), (torch.zeros(2, 4),), {})


def test_tensors_of_two_devices_are_refused() -> None:
    deepseek_fast.int8_matmul  # noqa: B018  registers the op
    op = torch.ops.deepseek_fast.int8_matmul.default
    tensors = (torch.ones(2, 3, device="meta"), torch.ones(4, 3, dtype=torch.int8), torch.ones(4, device="meta"))
    with pytest.raises(RuntimeError, match="int8_matmul: q must be on x's device meta; got cpu"):
        checks.check(op, tensors, {})


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    sentence = (
        r"int8_cast: x must be on a GPU of compute capability 8.0 or later; got 7.5 \(Tesla T4\), move it to the CPU"
    )
    with FakeTensorMode(), pytest.raises(RuntimeError, match=sentence):
        checks.check(overload(), (torch.empty(3, 5, device="cuda"),), {})


def test_without_triton_the_op_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="int8_cast: triton must be installed for CUDA tensors; got"):
        register.kernels("fp8_cast", OP)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda_registers_nothing() -> None:
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"deepseek_fast::{OP}", "CUDA")


class _Compiled:
    """As Triton's: what a kernel became."""

    def __init__(self, ptx: str, shared: int) -> None:
        self.asm = {"ptx": ptx, "cubin": bytes(100)}
        self.metadata = type("Metadata", (), {"shared": shared})()
        self.hash = "0"


@pytest.mark.parametrize(
    ("ptx", "shared", "stack", "expect", "fault"),
    [
        ("wgmma.mma_async cp.async", 1000, 0, Expect(tensor_cores=True, async_copies=True), ""),
        ("", 1000, 8, Expect(), "spills 8 bytes"),
        ("", 300_000, 0, Expect(), "takes 300000 bytes of shared memory, of 232448"),
        ("cp.async", 0, 0, Expect(tensor_cores=True), "has no tensor-core product"),
        ("mma.sync", 0, 0, Expect(async_copies=True), "has no asynchronous copy"),
        ("mma.sync", 0, 0, Expect(warpgroups=lambda constants: True), "has mma.sync, not wgmma.mma_async"),
        ("", 0, 0, Expect(max_bytes=99), "has 100 bytes, of 99"),
    ],
)
def test_the_gate_finds_what_is_wrong(
    ptx: str, shared: int, stack: int, expect: Expect, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import aot

    monkeypatch.setattr(aot, "_resources", lambda cubin: (32, stack))
    one = launch.Launch("kernel", 90, {}, None, (1,), _Compiled(ptx, shared))
    assert aot._held_to("room", "call", one, expect).faults == ([fault] if fault else [])


def test_the_gate_finds_a_row_that_no_call_reaches(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import aot

    monkeypatch.setattr(table, "module", "deepseek_fast.kernels.fp8_cast.triton_kernel")
    parts = [aot.Part("fp8_cast", 80, 0.0, [], {"some_op": [0]}), aot.Part("fp8_cast", 90, 0.0, [], {"some_op": [1]})]
    assert "some_op: row 2 {'BLOCK_M': 128} is reached by no call of gpu_cases.py" in aot.unreached(parts)
    parts[0].reached["some_op"].append(2)
    assert not [fault for fault in aot.unreached(parts) if fault.startswith("some_op")]
