"""The compiled loops over K, of every room at every level, and proofs that the check fails where it must."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import hot_loops
from bench.disassembly import disassemble, inner_loops, parse
from bench.hot_loops import HotLoop, check_functions, register_tile

ROOM_LEVELS = [(room, level) for room in hot_loops.rooms() for level in hot_loops.levels(room)]
WANTED = HotLoop(
    "avx512", "f32", register_tile("TileF32"), 4, "zmm", ((r"vfmadd\d+ps", 1),), reads=4, others=4, why="2 x 2"
)
CLEAN = """
mov    %rdi,%rax
jmp    1010 <f+0x10>
1010: vmovups (%rcx),%zmm0
vmovups 0x40(%rcx),%zmm1
vbroadcastss (%rsi),%zmm2
vfmadd231ps %zmm0,%zmm2,%zmm3
vfmadd231ps %zmm1,%zmm2,%zmm4
vbroadcastss (%rsi,%rdx,4),%zmm2
add    $0x4,%rsi
vfmadd231ps %zmm0,%zmm2,%zmm5
vfmadd231ps %zmm1,%zmm2,%zmm6
add    $0x100,%rcx
cmp    %rsi,%rax
jne    1010 <f+0x10>
ret
"""


def listing(lines: str, *, tile: str = "TileF32", size: str = "2, 2") -> str:
    """objdump's text of one function at 0x1000; every line is 4 bytes further unless it begins with its address."""
    name = f"void dsf::(anonymous namespace)::{tile}<dsf::(anonymous namespace)::Vec>::run<{size}, dsf::End>(long)"
    found, address = [f"0000000000001000 <{name}>:"], 0x1000
    for line in lines.strip().splitlines():
        if match := re.match(r"([0-9a-f]+): ", line):
            address, line = int(match[1], 16), line[match.end() :]
        found.append(f"    {address:x}:\t{line}")
        address += 4
    return "\n".join(found)


def problems(lines: str, wanted: HotLoop = WANTED, **options: str) -> list[str]:
    return check_functions("some_room avx512", [wanted], parse(listing(lines, **options)))[1]


@pytest.mark.parametrize(("room", "level"), ROOM_LEVELS)
def test_hot_loops_of_the_build(room: str, level: str) -> None:
    unfit = hot_loops.unfit_build()
    if unfit:
        pytest.skip(unfit)
    loops, sentences = hot_loops.check(room, level)
    assert loops
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("room", hot_loops.rooms())
def test_every_room_lists_its_loops_and_says_why(room: str) -> None:
    listed = hot_loops.room_data(room)["HOT_LOOPS"]
    assert {loop.isa for loop in listed} == set(hot_loops.levels(room))
    assert all(loop.why for loop in listed)
    assert len({(loop.isa, loop.scheme) for loop in listed}) == len(listed)


def test_a_room_without_the_file_is_told_so() -> None:
    with pytest.raises(FileNotFoundError, match=r"^bench: no_room must say .* got no kernels/no_room/hot_loops\.py"):
        hot_loops.room_data("no_room")


def test_a_room_s_file_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels/half").mkdir(parents=True)
    (tmp_path / "kernels/half/hot_loops.py").write_text("HOT_LOOPS = ()\n")
    monkeypatch.setattr(hot_loops, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="must define HOT_LOOPS and COUNTED; got no COUNTED"):
        hot_loops.room_data("half")


def test_a_level_without_a_list_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_loops, "functions", lambda room, isa: parse(listing(CLEAN, tile="TileNew")))
    _, sentences = hot_loops.check("fused_matmul", "no_level")
    assert sentences == [
        "bench: kernels/fused_matmul/hot_loops.py must list every loop of no_level; got none for TileNew"
    ]


def test_a_clean_loop_passes() -> None:
    loops, sentences = check_functions("some_room avx512", [WANTED], parse(listing(CLEAN)))
    assert sentences == []
    assert loops[0].cells == ("some_room avx512 f32", "4", "12", "4 vfmadd231ps", "4", "4")


ADD = "add    $0x100,%rcx"
BROKEN = {
    "spill": (
        CLEAN.replace(ADD, f"vmovaps %zmm3,0x40(%rsp)\nvmovaps 0x40(%rsp),%zmm3\n{ADD}"),
        "must leave the stack alone; got 2 accesses, first `vmovaps %zmm3,0x40(%rsp)`",
    ),
    "spill below a frame pointer": (
        f"push   %rbp\nmov    %rsp,%rbp\n{CLEAN.strip()}".replace(ADD, f"vmovaps %zmm3,-0x40(%rbp)\n{ADD}"),
        "must leave the stack alone; got 1 accesses, first `vmovaps %zmm3,-0x40(%rbp)`",
    ),
    "missing instruction": (CLEAN.replace("vfmadd231ps", "vmulps"), r"must run vfmadd\d+ps; got no loop with it"),
    "one too few": (
        CLEAN.replace("vfmadd231ps %zmm1,%zmm2,%zmm6", "vmulps %zmm1,%zmm2,%zmm6"),
        r"must run vfmadd\d+ps 4 times an iteration; got 3",
    ),
    "ymm": (
        CLEAN.replace("zmm", "ymm"),
        r"must run vfmadd\d+ps in zmm registers; got 4 in others, first `vfmadd231ps %ymm0,%ymm2,%ymm3`",
    ),
    "shared sum": (CLEAN.replace("zmm6", "zmm5"), "must keep its sums in 4 registers; got 3"),
    "call": (CLEAN.replace(ADD, f"call   2000 <expf>\n{ADD}"), "must call nothing; got `call 2000`"),
    "division": (
        CLEAN.replace(ADD, f"vdivps %zmm7,%zmm3,%zmm7\n{ADD}"),
        "must divide nothing; got `vdivps %zmm7,%zmm3,%zmm7`",
    ),
    "reload": (
        CLEAN.replace("zmm0,%zmm2,%zmm5", "zmm7,%zmm2,%zmm5").replace(ADD, f"vmovups (%rcx),%zmm7\n{ADD}"),
        "must read memory 4 times at most; got 5",
    ),
    "copies": (
        CLEAN.replace(ADD, f"vmovaps %zmm3,%zmm9\n{ADD}"),
        "must hold 4 instructions at most beside steps and reads; got 5",
    ),
    "alignment": (CLEAN.replace("1010", "1012"), "must start at a multiple of 8 bytes; got 0x1012"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_loop_gets_a_sentence(name: str) -> None:
    lines, sentence = BROKEN[name]
    assert f"bench: the loop of some_room avx512 f32 with 4 sums {sentence}" in problems(lines)


def test_a_loop_of_another_size_gets_a_sentence() -> None:
    start = "bench: some_room avx512 f32 must have 4 vectors of sums in its largest loop; got "
    assert f"{start}2" in problems(CLEAN, size="2, 1")
    assert problems(CLEAN, tile="TileNew") == [start + rf"no function like {register_tile('TileF32')}"]


def test_smaller_tiles_are_checked_too() -> None:
    small = CLEAN.replace("vfmadd231ps %zmm0,%zmm2,%zmm3\n", "").replace("vfmadd231ps %zmm0,%zmm2,%zmm5\n", "")
    built = parse(f"{listing(CLEAN)}\n\n{listing(small, size='1, 3')}")
    _, sentences = check_functions("some_room avx512", [WANTED], built)
    assert len(sentences) == 2 and "with 3 sums" in sentences[0] and "3 times an iteration; got 2" in sentences[0]


def test_a_loop_may_be_unrolled() -> None:
    body = CLEAN[CLEAN.index("1010: ") : CLEAN.index("cmp")]
    assert problems(CLEAN.replace(body, body + body.removeprefix("1010: "))) == []


def test_rbp_is_a_register_where_no_frame_is() -> None:
    assert problems(CLEAN.replace("(%rcx)", "(%rbp)")) == []


def test_a_rare_call_lies_outside_the_loop() -> None:
    lines = CLEAN.replace(ADD, f"test %rcx,%rcx\nje 2000 <f+0x1000>\n{ADD}")
    lines += "2000: mov %rax,0x30(%rsp)\ncall 3000 <g>\nmov 0x30(%rsp),%rax\njmp 103c <f+0x3c>"
    rare = dataclasses.replace(WANTED, others=6, rare_calls=True)
    assert problems(lines, rare) == []
    assert any(
        "must call nothing; got `call 3000`" in one for one in problems(lines, dataclasses.replace(WANTED, others=9))
    )
    every_time = BROKEN["call"][0]
    assert "must run" in problems(every_time, rare)[0]


def test_a_loop_that_is_entered_in_its_middle_may_begin_anywhere() -> None:
    assert problems(BROKEN["alignment"][0], dataclasses.replace(WANTED, aligned=False)) == []


def test_a_step_may_have_two_instructions() -> None:
    wanted = dataclasses.replace(WANTED, steps=(("vpmaddwd", 1), ("vpaddd", 1)))
    lines = re.sub(r"vfmadd231ps (%zmm\d),%zmm2,(%zmm\d)", r"vpmaddwd \1,%zmm2,%zmm8\nvpaddd %zmm8,\2,\2", CLEAN)
    assert problems(lines, wanted) == []
    assert (
        "must run vpmaddwd 4 times an iteration; got 3" in problems(lines.replace("vpmaddwd", "vpmulld", 1), wanted)[0]
    )


def test_instructions_are_read_as_they_stand() -> None:
    lines = """
{vex} vpdpbusd %ymm0,%ymm1,%ymm2
lock add %eax,(%rdi)
vfmadd231ps (%rdx,%rcx,4){1to16},%zmm1,%zmm2{%k1}
movdqa 0x0(%rip),%xmm7        # 1558 <void dsf::f<1, 2>(long)>
lea    0x8(%rsp),%rax
cmp    0x8(%rsp),%rax
"""
    dot, add, fma, load, lea, compare = parse(listing(lines))[0].instructions
    assert (dot.name, dot.destination, dot.registers) == ("{vex} vpdpbusd", "%ymm2", "ymm")
    assert (add.name, add.operands, add.reads) == ("add", ("%eax", "(%rdi)"), False)
    assert (fma.operands[0], fma.destination, fma.reads) == ("(%rdx,%rcx,4){1to16}", "%zmm2", True)
    assert load.operands == ("0x0(%rip)", "%xmm7") and load.reads
    assert not lea.reads and not lea.uses(("%rsp",))
    assert compare.reads and compare.uses(("%rsp",))


def test_only_loops_that_hold_no_loop_are_inner() -> None:
    lines = """
jmp    1008 <f>
1004: nop
1008: nop
100c: cmp %rax,%rbx
1010: jne 100c <f>
1014: test %rcx,%rcx
1018: je 1028 <f>
101c: jne 1004 <f>
1020: jmp *%rax
1028: nop
102c: jmp 1014 <f>
"""
    # 1004 to 101c goes around both; 1028 belongs to the second although it stands apart.
    found = [[one.address for one in loop] for loop in inner_loops(parse(listing(lines))[0])]
    assert found == [[0x100C, 0x1010], [0x1014, 0x1018, 0x1028, 0x102C]]


def test_a_block_behind_the_loop_is_no_loop() -> None:
    lines = "1000: je 100c <f>\n1004: nop\n1008: ret\n100c: vfmadd231ps %zmm0,%zmm2,%zmm3\n1010: jmp 1004 <f>"
    assert inner_loops(parse(listing(lines))[0]) == []


@pytest.mark.parametrize(
    ("cache", "sentence"),
    [
        ("CMAKE_BUILD_TYPE:STRING=Release\nDSF_SANITIZE:STRING=\n", None),
        ("CMAKE_BUILD_TYPE:STRING=Release\nDSF_SANITIZE:STRING=address\n", "without sanitizers; got address"),
        ("CMAKE_BUILD_TYPE:STRING=Debug\nDSF_SANITIZE:STRING=\n", "a Release build; got Debug"),
        ("", "a Release build; got none"),
    ],
)
def test_which_builds_are_judged(cache: str, sentence: str | None) -> None:
    refusal = hot_loops.refusal(cache)
    assert refusal is None if sentence is None else refusal is not None and sentence in refusal


@pytest.mark.slow
def test_a_tile_too_large_for_the_registers_is_found(tmp_path: Path) -> None:
    """A real compiler's spills: 12 x 2 sums and 16 registers."""
    if hot_loops.unfit_build() or shutil.which("g++") is None:
        pytest.skip(hot_loops.unfit_build() or "g++ is not installed")
    for folder in ("csrc", "kernels/fused_matmul"):
        shutil.copytree(hot_loops.ROOT / folder, tmp_path / folder)
    header = tmp_path / "csrc/gemm/vec_avx2.h"
    text = header.read_text()
    assert "int TILE_M = 6," in text
    header.write_text(text.replace("int TILE_M = 6,", "int TILE_M = 12,"))
    command = ["g++", "-std=c++20", "-O3", "-march=x86-64-v3", "-fPIC", "-fno-exceptions", "-I", str(tmp_path), "-c"]
    command += [str(tmp_path / "kernels/fused_matmul/cpu_avx2.cc"), "-o", str(tmp_path / "cpu_avx2.cc.o")]
    subprocess.run(command, check=True, timeout=120)
    listed = hot_loops.room_data("fused_matmul")["HOT_LOOPS"]
    wanted = next(loop for loop in listed if (loop.isa, loop.scheme) == ("avx2", "f32"))
    wanted = dataclasses.replace(wanted, sums=24, reads=14)
    _, sentences = check_functions("fused_matmul avx2", [wanted], disassemble(tmp_path / "cpu_avx2.cc.o"))
    assert any("with 24 sums must leave the stack alone; got" in sentence for sentence in sentences), sentences
