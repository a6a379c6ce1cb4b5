"""The benchmark's plug-ins: every one keeps the protocol and gives right answers; a user's own file joins in."""

import importlib.util
import inspect
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deepseek_fast
from deepseek_fast.bench import ceiling, peers, rooms, row
from deepseek_fast.kernels.block_sparse_attention import bench_cases as attention_cases
from deepseek_fast.kernels.fp8_cast import bench_cases
from deepseek_fast.kernels.fused_conv import bench_cases as conv_cases
from deepseek_fast.kernels.lightning_indexer import bench_cases as indexer_cases
from deepseek_fast.kernels.sparse_mla import bench_cases as mla_cases

torch = pytest.importorskip("torch", reason="torch is not installed")

# Whose answers are tested in test_bench_casts.py, test_bench_conv.py and test_bench_attention.py.
ATTENTION = (*attention_cases.BENCH, *mla_cases.BENCH, *indexer_cases.BENCH)
ELSEWHERE = {case.op for case in (*bench_cases.BENCH, *conv_cases.BENCH, *ATTENTION)}
COMPILED = ("torch_compile", "torchao_int8")  # seconds for each module
# N and K suit every library: sglang's kernels want multiples of 32, OpenVINO's groups more than 128 values.
M, N, K = 5, 64, 256
PLUGIN = """
import torch
from deepseek_fast.bench.peers import Peer, Unsupported
PACKAGES = ()
HOW_TO_INSTALL = "it is a test"

def fused_matmul(inputs):
    {body}
"""


def fused_case(dtype: str = "float32", activation: str = "none") -> Any:
    return rooms.part("fused_matmul", "cases").Bench(M, N, K, dtype, activation)


def modes(room: str) -> list[tuple[str, dict[str, str]]]:
    """(dtype, further arguments) of a room's bench cases."""
    found = {
        (case.dtype, *([case.activations] if hasattr(case, "activations") else []))
        for case in rooms.part(room, "cases").BENCH
    }
    return [(dtype, {"activations": rest[0]} if rest else {}) for dtype, *rest in sorted(found)]


@pytest.mark.parametrize("name", peers.names())
def test_a_plugin_keeps_the_protocol(name: str) -> None:
    plugin = peers.plugin(name)
    made = {key for key, _ in inspect.getmembers(plugin, inspect.isfunction) if not key.startswith("_")}
    made = {key for key in made if getattr(plugin, key).__module__ == plugin.__name__}
    assert made and made <= {*rooms.names(), *ELSEWHERE}
    assert isinstance(plugin.PACKAGES, tuple) and all(isinstance(package, str) for package in plugin.PACKAGES)
    assert plugin.HOW_TO_INSTALL and plugin.__doc__
    assert importlib.util.find_spec(name) is None, "a file named after a library hides it"


def test_a_library_is_imported_only_where_its_peer_is_made() -> None:
    code = (
        "import sys; from deepseek_fast.bench import peers; plugins = [peers.plugin(name) for name in peers.names()]; "
        "needed = {package for plugin in plugins for package in plugin.PACKAGES} | {'torch._inductor'}; "
        "print('loaded:', sorted(needed & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "loaded: []\n"


def test_those_always_there_come_first_and_need_nothing() -> None:
    first = (*peers.FIRST, *peers.FULL)
    assert peers.names()[: len(first)] == list(first)
    assert all(peers.missing(name) is None for name in first)
    assert peers.chosen(None) == first and peers.chosen(None, quick=True) == peers.FIRST
    assert peers.chosen(("none",)) == ()
    assert set(first) <= set(peers.chosen(("all",))) <= set(peers.names())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peers must be all, none, a \.py file or among .*torch_eager.*; got 'mkl'"):
        peers.chosen(("torch_eager", "mkl"))


def test_a_missing_library_is_refused_by_name_and_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.plugin("zendnn"), "PACKAGES", ("no_such_library",))
    with pytest.raises(ValueError, match="got 'zendnn': no_such_library is not installed; run `make bench-peers`"):
        peers.chosen(("zendnn",))
    assert "zendnn" in peers.names() and "zendnn" not in peers.chosen(("all",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "peers must be names or existing .py files"),
        ("PACKAGES = ()\n", "peers must be plug-ins that define HOW_TO_INSTALL"),
        ("import no_such_library\n", "peers must be Python files that run"),
        ("PACKAGES = (\n", "peers must be Python files that run"),
        (
            "PACKAGES = ('no_such_library',)\nHOW_TO_INSTALL = 'ask its author'\n",
            "no_such_library is not installed; ask",
        ),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")) as error:
        peers.chosen((str(path),))
    assert str(path) in str(error.value)


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> dict[str, Any]:
    """A tiny row beside a plug-in of the user's own."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(body=body))
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SECONDS", 1e-4)
    one = rooms.Row("fused_matmul", fused_case(), deepseek_fast.isa(), 1, True)
    return row.measure(one, peers.chosen((str(path),)), ceiling.Roofline())


def test_a_users_file_is_timed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "x, w, b = inputs['x'], inputs['weight'], inputs['bias']; "
    body += "return {'mine': Peer(lambda: x @ w.T + b, 1e-5, 'f32')}"
    found = measured(tmp_path, monkeypatch, body)
    mine = found["peers"]["mine"]
    assert mine["right"] and 0 <= mine["relative_error"] < 1e-5 and mine["tolerance"] == 1e-5
    assert mine["time_ratio"] == pytest.approx(found["min_us"] / mine["min_us"])
    assert found["failed"] == {} and found["error_over_bound"] <= 1


@pytest.mark.parametrize("value", ["0.0", "float('nan')", "float('inf')"])
def test_a_fast_wrong_answer_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    body = f"y = torch.full((inputs['x'].shape[0], inputs['weight'].shape[0]), {value}); "
    found = measured(tmp_path, monkeypatch, body + "return {'mine': Peer(lambda: y, 1e-5, 'none')}")
    mine = found["peers"]["mine"]
    assert not mine["right"] and not mine["relative_error"] <= 1e-5
    assert mine["min_us"] < 100 and mine["time_ratio"] > 0, "it is timed all the same"


@pytest.mark.parametrize(
    ("body", "remark"),
    [
        ("raise Unsupported('it takes no f32')", "it takes no f32"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("return {'mine': Peer(inputs['no such'], 1e-5, '')}", "KeyError: 'no such'"),
        ("return {'mine': Peer(lambda: 1 / 0, 1e-5, '')}", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_peer_that_raises_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, remark: str
) -> None:
    found = measured(tmp_path, monkeypatch, body)
    assert found["peers"] == {} and list(found["failed"].values()) == [remark]
    assert found["min_us"] > 0


@pytest.mark.parametrize(
    ("name", "room"),
    [
        pytest.param(name, room, marks=pytest.mark.slow if name in COMPILED else ())
        for name in peers.names()
        for room in rooms.names()
        if hasattr(peers.plugin(name), room) and room not in ELSEWHERE
    ],
)
def test_the_answers_are_right(
    name: str, room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Any, num_threads: Any
) -> None:
    """At every dtype and mode of the room's bench cases, and every activation."""
    absent = peers.missing(name)
    if absent:
        pytest.skip(absent)
    make = getattr(peers.plugin(name), room)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    num_threads(1)
    cases, reference = rooms.part(room, "cases"), rooms.part(room, "ref")
    answers, refused = 0, set()
    for dtype, rest in modes(room):
        for activation in cases.ACTIVATIONS:
            inputs = cases.Bench(M, N, K, dtype, activation, **rest).inputs(generator)
            wanted = getattr(reference, f"{room}_ref")(**inputs).double()
            with torch.inference_mode():
                try:
                    found = make(inputs)
                except peers.Unsupported as reason:
                    refused.add(str(reason))
                    continue
                for label, peer in found.items():
                    for y in (peer.call(), peer.call()):  # the first may prepare what the second takes
                        assert y.shape == (M, N) and math.isfinite(peer.tolerance) and peer.why
                        error = float((y.double() - wanted).norm() / wanted.norm())
                        assert error <= peer.tolerance, f"{label} {dtype} {activation} {rest}: {error}"
                    answers += 1
    assert answers or refused
    assert all(reason.strip() and "Error" not in reason for reason in refused)


@pytest.mark.parametrize("room", ["fused_matmul", "int8_matmul"])
def test_peers_of_a_gated_product_finish_it(room: str, generator: Any, num_threads: Any) -> None:
    num_threads(1)
    inputs = rooms.part(room, "cases").Bench(M, N, K, "float32", "silu", gated=True).inputs(generator)
    wanted = getattr(rooms.part(room, "ref"), f"{room}_ref")(**inputs).double()
    with torch.inference_mode():
        found, failed = peers.of(room, inputs, peers.ALWAYS)
        assert found and not failed
        for label, peer in found.items():
            error = float((peer.call().double() - wanted).norm() / wanted.norm())
            assert error <= 2 * peer.tolerance, label  # of two factors


@pytest.mark.slow
def test_compiled_torch_without_a_compiler_refuses(monkeypatch: pytest.MonkeyPatch, generator: Any) -> None:
    from deepseek_fast.cli import output

    with output.quiet():
        from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    _, failed = peers.of("fused_matmul", fused_case().inputs(generator), ("torch_compile",))
    assert failed == {"torch_compile": "torch.compile finds no C++ compiler; install g++ or set CXX"}


@pytest.mark.slow
def test_a_compiled_peer_is_compiled_for_the_threads_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Any, num_threads: Any
) -> None:
    """The same formula again, for two threads after one: right both times, and nothing of torch's settings changes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    from torch._inductor import config

    before = SimpleNamespace(freezing=config.freezing, threads=config.compile_threads)
    inputs = fused_case(activation="silu").inputs(generator)
    wanted = rooms.part("fused_matmul", "ref").fused_matmul_ref(**inputs)
    for threads in (1, 2):
        num_threads(threads)
        with torch.inference_mode():
            peer = peers.plugin("torch_compile").fused_matmul(inputs)["torch.compile"]
            assert float((peer.call().double() - wanted).norm() / wanted.norm()) <= peer.tolerance
        assert torch.get_num_threads() == threads
    assert before == SimpleNamespace(freezing=config.freezing, threads=config.compile_threads)
