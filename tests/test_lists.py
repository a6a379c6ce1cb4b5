"""The places that name the operators agree: rooms.txt, the public names, the README table, ONNX, variants.inc."""

import importlib
import platform
import re
import subprocess
import sys

import pytest

import deepseek_fast
from deepseek_fast._load import native
from tests.doors import EVERY_ROOM, ROOT, torch_op
from tests.plugin import ARM_LEVELS, ISA_LEVELS

ROOM_FILES = ("README.md", "op.py", "ref.py", "cases.py", "cpu.h", "variants.inc", "cpu.cc", "torch.cc", "ort.cc")
LINEAR_H = ROOT / "csrc" / "gemm" / "linear.h"
VARIANT_ROW = re.compile(r"^DSF_VARIANT\((\w+), (\w+), (\w+)\)$", re.MULTILINE)


def camel(room: str) -> str:
    return "".join(word.capitalize() for word in room.split("_"))


def variant_rows(room: str) -> list[tuple[str, str, str]]:
    """(ISA level, dtype, kernel) of every row of variants.inc."""
    return VARIANT_ROW.findall((ROOT / "kernels" / room / "variants.inc").read_text())


def test_rooms_are_the_folders_of_kernels() -> None:
    folders = {path.name for path in (ROOT / "kernels").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(EVERY_ROOM) == folders
    assert len(EVERY_ROOM) == len(set(EVERY_ROOM))


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_a_room_is_complete(room: str) -> None:
    folder = ROOT / "kernels" / room
    missing = [name for name in (*ROOM_FILES, f"test_{room}.py") if not (folder / name).is_file()]
    assert not missing
    assert not (folder / "__init__.py").exists(), "rooms are namespace packages"


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_every_isa_file_has_its_rows_and_every_row_its_file(room: str) -> None:
    files = {path.stem.removeprefix("cpu_") for path in (ROOT / "kernels" / room).glob("cpu_*.cc")}
    rows = variant_rows(room)
    assert files <= set(ISA_LEVELS)
    assert {isa for isa, _, _ in rows} == files
    for isa, _, kernel in rows:
        assert kernel.startswith(f"{room}_")
        assert isa in kernel
    levels = [ISA_LEVELS.index(isa) for isa, _, _ in rows]
    assert levels == sorted(levels, reverse=True), "best first"
    for dtype in {dtype for _, dtype, _ in rows}:
        assert any(isa == "scalar" and row_dtype == dtype for isa, row_dtype, _ in rows), f"{dtype} needs a scalar row"


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_the_library_was_built_from_these_rows(room: str) -> None:
    is_arm = platform.machine() == "aarch64"
    rows = [(isa, kernel) for isa, _, kernel in variant_rows(room) if isa == "scalar" or (isa in ARM_LEVELS) == is_arm]
    assert [tuple(row) for row in native().variants(room)] == rows


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_every_door_knows_the_room(room: str) -> None:
    assert room in deepseek_fast.__all__
    assert callable(getattr(deepseek_fast, room))
    assert callable(getattr(importlib.import_module("deepseek_fast.numpy"), room))
    assert torch_op(room).default
    folder = ROOT / "kernels" / room
    assert f'"{camel(room)}"' in (folder / "ort.cc").read_text()
    body = importlib.import_module(f"deepseek_fast.kernels.{room}.body")
    names = [getattr(body, name) for name in ("OP_TYPE", "CAST", "CONV", "ATTENTION") if hasattr(body, name)]
    assert camel(room) in names


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_the_readme_has_a_row_for_the_room(room: str) -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    assert any(f"`{room}`" in row or f"[{room}]" in row for row in rows)


def test_all_public_names_exist() -> None:
    for name in deepseek_fast.__all__:
        assert getattr(deepseek_fast, name) is not None, name
    assert list(deepseek_fast.__all__) == sorted(deepseek_fast.__all__, key=str)
    assert set(deepseek_fast.__all__) <= set(dir(deepseek_fast))


def test_onnx_domain_is_one_name() -> None:
    from deepseek_fast.onnx import _body

    assert _body.DOMAIN == "ai.deepseek_fast"
    sources = [path.read_text() for path in (ROOT / "csrc" / "ort").glob("*.cc")]
    assert any('"ai.deepseek_fast"' in text for text in sources)


def test_activations_are_one_list() -> None:
    from deepseek_fast import _activations
    from deepseek_fast.bench.peers import _common
    from deepseek_fast.onnx import _body

    assert _activations.ACTIVATIONS == _body.ACTIVATION_NAMES == tuple(_common.ACTIVATIONS)
    (listed,) = re.findall(r"#define DSF_ACTIVATIONS\(entry\)(.*?)\n#define", LINEAR_H.read_text(), re.DOTALL)
    assert tuple(re.findall(r"entry\((\w+)\)", listed)) == _activations.ACTIVATIONS


def test_an_import_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, deepseek_fast; print(*(m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", EVERY_ROOM)
def test_cases_have_distinct_ids(room: str) -> None:
    cases = importlib.import_module(f"deepseek_fast.kernels.{room}.cases")
    for table in (cases.CASES, cases.BENCH):
        ids = [case.id for case in table]
        assert len(ids) == len(set(ids))
