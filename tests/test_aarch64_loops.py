"""What the compiler made of the register tiles on aarch64, where nothing can be timed: sums stay in registers.

`make test-emulated` builds the objects; for x86-64 see tests/test_hot_loops.py.
"""

import re
import subprocess

import pytest

from tests.emulated import BUILD, Unavailable, library, tool

pytestmark = pytest.mark.slow  # `make test-emulated` runs them
LINE = re.compile(r"^ *([0-9a-f]+):\t(\S+)\s*(.*)$")
BACK = re.compile(r"(?:[^<]*, )?([0-9a-f]+) <")  # a branch's operands
# (object, its whole register tile or amax, the instruction that adds, how many of it a loop has, instructions in all)
LOOPS = (
    ("fused_matmul/cpu_neon", r"TileF32<.*run<6, 4, ", "fmla", 24, 36),
    ("fused_matmul/cpu_neon", r"TileBf16<.*run<4, 4, ", "fmla", 32, 66),
    ("fused_matmul/cpu_neon_i8mm", r"TileBf16<.*run<6, 4, ", "bfdot", 24, 41),
    ("int8_matmul/cpu_neon", r"TileInt8Pairs<.*run<4, 2, ", "sadalp", 16, 70),
    ("int8_matmul/cpu_neon_dotprod", r"TileInt8Dot<.*run<6, 4, ", "sdot", 24, 41),
    ("int8_matmul/cpu_neon_i8mm", r"TileInt8Matrix<.*run<8, 2, ", "smmla", 16, 40),
    # Each pixel of a convolution has a pointer of its own: all are in registers, of which there are twice as many as on
    # x86-64. The next weights are asked for, by an address and a step.
    ("lightning_indexer/cpu_neon", r"TileBf16<.*run<4, 4, ", "fmla", 32, 66),
    ("lightning_indexer/cpu_neon_i8mm", r"TileBf16<.*run<6, 4, ", "bfdot", 24, 41),
    ("fused_conv/cpu_neon", r"ConvTileF32<.*run<6, 4, ", "fmla", 24, 38),
    ("fused_conv/cpu_neon", r"ConvTileBf16<.*run<4, 4, ", "fmla", 32, 70),
    ("fused_conv/cpu_neon_i8mm", r"ConvTileBf16<.*run<6, 4, ", "bfdot", 24, 45),
    ("fused_conv/cpu_neon", r"ConvTileInt8<.*run<4, 4, ", "smlal", 16, 141),
    ("fused_conv/cpu_neon_dotprod", r"ConvTileInt8<.*run<6, 4, ", "sdot", 24, 51),
    *(
        ("fp8_cast/cpu_neon", rf"\bamax<\(dsf::Dtype\){dtype}>", "umax", 4, most)
        for dtype, most in ((0, 15), (1, 19), (8, 19))  # of f32, bf16, f16
    ),
)


def functions(name: str) -> dict[str, list[tuple[int, str, str]]]:
    """(address, instruction, operands) of each function of an object."""
    try:
        library("aarch64")
        command = (tool("aarch64-linux-gnu-objdump"), "-d", "-C", "-w", "--no-show-raw-insn")
    except Unavailable as missing:
        pytest.skip(str(missing))
    path = BUILD / "aarch64" / "CMakeFiles" / "dsf_core.dir" / "kernels" / f"{name}.cc.o"
    text = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, str, str]]] = {}
    for block in text.split("\n\n"):
        header, *lines = block.strip().splitlines() or [""]
        if header.endswith(">:"):
            matches = [LINE.match(line) for line in lines]
            found[header] = [(int(m[1], 16), m[2], m[3]) for m in matches if m]
    return found


def inner_loops(body: list[tuple[int, str, str]]) -> list[list[tuple[int, str, str]]]:
    """From the target of a branch backwards to the branch, without another one in between."""
    loops = []
    for i, (address, name, operands) in enumerate(body):
        target = BACK.match(operands) if name.startswith(("b.", "cb", "tb")) else None
        if target and body[0][0] <= int(target[1], 16) <= address:
            loop = [row for row in body[: i + 1] if row[0] >= int(target[1], 16)]
            if not any(re.match(r"b$|b\.|cb|tb|ret", row[1]) for row in loop[:-1]):
                loops.append(loop)
    return loops


@pytest.mark.parametrize(("name", "tile", "adds", "sums", "most"), LOOPS)
def test_the_loop_over_k_is_the_tile_and_no_more(name: str, tile: str, adds: str, sums: int, most: int) -> None:
    tiles = {header: body for header, body in functions(name).items() if re.search(tile, header)}
    assert tiles
    for header, body in tiles.items():
        loops = [loop for loop in inner_loops(body) if sum(row[1] == adds for row in loop) == sums]
        assert len(loops) == 1, f"{header}: {len(loops)} loops of {sums} {adds}"
        spilled = [f"{instruction} {operands}" for _, instruction, operands in loops[0] if "[sp" in operands]
        assert not spilled, f"{header}: {spilled}"
        assert len(loops[0]) <= most, header
