"""What the compiler made: no wide instruction outside its ISA file, no symbol that could replace another file's."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import deepseek_fast
from tests.doors import ROOT
from tests.plugin import ISA_LEVELS

LEVEL_OF_FILE = re.compile(rf"_({'|'.join(ISA_LEVELS)})\.cc\.o$")
# A defined weak symbol (V, W) or unique one (u): the linker keeps one copy for everyone, perhaps this file's.
WEAK_KINDS = "VWu"
# Registers and instruction forms that x86-64-v2 does not have: ymm, zmm, opmasks, and any VEX form of xmm code.
WIDE = re.compile(r"%[yz]mm\d|%k[0-7]\b|\tv[a-z0-9]+ .*%xmm")
ZMM = re.compile(r"%zmm\d|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b")


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def core_objects() -> tuple[Path, ...]:
    """Object files of _C_core in the newest build tree."""
    trees = sorted(ROOT.glob("build/*/CMakeFiles/dsf_core.dir"), key=lambda path: path.stat().st_mtime)
    return tuple(sorted(trees[-1].rglob("*.o"))) if trees else ()


def objects(*, isa: bool) -> list[Path]:
    """The objects of the ISA files above the baseline, or all the others."""
    if not core_objects():
        pytest.skip("no build tree: the package was installed, not built here")

    def above_baseline(path: Path) -> bool:
        level = LEVEL_OF_FILE.search(path.name)
        return level is not None and level[1] != "scalar"

    return [path for path in core_objects() if above_baseline(path) == isa]


def test_isa_objects_export_no_weak_symbol() -> None:
    nm = tool("nm")
    for path in objects(isa=True):
        lines = [line.split() for line in run(nm, "--defined-only", "--demangle", str(path)).splitlines()]
        weak = [" ".join(words[2:]) for words in lines if len(words) > 2 and words[1] in WEAK_KINDS]
        assert not weak, f"{path.name}: {weak}"


def test_baseline_objects_hold_no_wide_instruction() -> None:
    objdump = tool("objdump")
    assert objects(isa=False)
    for path in objects(isa=False):
        wide = [line for line in run(objdump, "-d", "--no-show-raw-insn", str(path)).splitlines() if WIDE.search(line)]
        assert not wide, f"{path.name}: {len(wide)} instructions, first {wide[0].strip()}"


def test_avx2_objects_hold_no_avx512_instruction() -> None:
    objdump = tool("objdump")
    paths = [path for path in objects(isa=True) if LEVEL_OF_FILE.search(path.name)[1] in ("avx2", "avxvnni")]
    assert paths
    for path in paths:
        wide = [line for line in run(objdump, "-d", "--no-show-raw-insn", str(path)).splitlines() if ZMM.search(line)]
        assert not wide, f"{path.name}: {len(wide)} instructions, first {wide[0].strip()}"


def needed(library: Path) -> set[str]:
    dynamic = run(tool("readelf"), "-d", str(library))
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))


def libraries() -> dict[str, Path]:
    from deepseek_fast import _load

    folder = Path(_load.native().__file__).parent
    return {path.name.split(".")[0]: path for path in folder.glob("*.so")}


def test_core_links_libc_only() -> None:
    assert needed(libraries()["_C_core"]) <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}


def test_the_onnx_runtime_library_links_neither_torch_nor_python() -> None:
    allowed = {"_C_core.abi3.so", "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    assert needed(libraries()["_C_ort"]) <= allowed


@pytest.mark.parametrize("name", ["_C_core", "_C_torch", "_C_ort"])
def test_libraries_ask_for_no_path_of_this_machine(name: str) -> None:
    dynamic = run(tool("readelf"), "-d", str(libraries()[name]))
    for path in re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*?)\]", dynamic):
        assert path in ("$ORIGIN", "")
    assert str(ROOT).encode() not in libraries()[name].read_bytes(), "a build path was left in the library"


def test_the_version_is_the_library_s() -> None:
    from deepseek_fast._load import native

    assert native().version() == deepseek_fast.__version__
