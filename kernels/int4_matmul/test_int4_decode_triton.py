"""The assembly that decodes the weight, which Triton's interpreter does not run: each instruction as PTX defines it."""

import re
from collections.abc import Callable

import pytest
import torch

from deepseek_fast.kernels.int4_matmul import triton_decode as decode
from tests import gpu

pytestmark = gpu.gpu
WORD = 0xFFFFFFFF


def prmt(a: int, b: int, selector: int) -> int:
    source = (a | b << 32).to_bytes(8, "little")
    return int.from_bytes([source[selector >> 4 * i & 7] for i in range(4)], "little")


def lop3(a: int, b: int, c: int, table: int) -> int:
    bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
    return sum((table >> bit & 1) << i for i, bit in enumerate(bits))


def fma(a: int, b: int, c: int, dtype: torch.dtype) -> int:
    """Two numbers in each word; exact here, as the caller checks."""

    def pair(word: int) -> torch.Tensor:
        halves = torch.tensor([word & 0xFFFF, word >> 16]).to(torch.uint16)
        return halves.view(dtype).double()

    exact = pair(a) * pair(b) + pair(c)
    rounded = exact.to(dtype)
    assert torch.equal(rounded.double(), exact)
    low, high = rounded.view(torch.uint16).tolist()
    return int(low | high << 16)


RULES: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "shr.u32": lambda a, b: a >> b,
    "sub.u32": lambda a, b: a - b & WORD,
    "xor.b32": lambda a, b: a ^ b,
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "fma.rn.bf16x2": lambda a, b, c: fma(a, b, c, torch.bfloat16),
    "fma.rn.f16x2": lambda a, b, c: fma(a, b, c, torch.float16),
}


def run(assembly: str, outputs: int, *inputs: int) -> list[int]:
    registers = {f"${outputs + i}": value for i, value in enumerate(inputs)}
    for line in re.findall(r"^\s*([a-z][^;]*);", assembly, re.M):
        name, operands = line.split(None, 1)
        target, *sources = (operand.strip() for operand in operands.split(","))
        registers[target] = RULES[name](*(int(s, 0) if s[0].isdigit() else registers[s] for s in sources))
    return [registers[f"${i}"] for i in range(outputs)]


def numbers(word: int, dtype: torch.dtype) -> list[float]:
    return torch.tensor([word & 0xFFFF, word >> 16]).to(torch.uint16).view(dtype).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_byte_and_zero_point_to_a_pair_of_floats(dtype: torch.dtype) -> None:
    is_bf16 = dtype == torch.bfloat16
    one, four = (decode._PAIR_BF16, decode._FOUR_BF16) if is_bf16 else (decode._PAIR_F16, decode._FOUR_F16)
    minus = decode._MINUS_BF16 if is_bf16 else decode._MINUS_F16
    for byte in range(256):
        others = [byte ^ 0x5A, 255 - byte, byte * 7 & 255]
        word = int.from_bytes([byte, *others], "little")
        for zero in (0, 1, 8, 15):
            offset = zero * 0x10001 + minus.value & WORD
            want = [[(b & 15) - zero, (b >> 4) - zero] for b in (byte, *others)]
            assert numbers(run(one.value, 1, byte, offset)[0], dtype) == want[0]
            zeros = [offset] * 4
            assert [numbers(pair, dtype) for pair in run(four.value, 4, word, *zeros)] == want


def test_every_byte_and_zero_point_to_a_pair_of_integers() -> None:
    for byte in range(256):
        codes, zeros = [byte, byte ^ 0x5A, 255 - byte, byte * 7 & 255], [byte & 15, 8, byte >> 4, 15]
        words = (int.from_bytes(values, "little") for values in (codes, zeros))
        got = b"".join(pairs.to_bytes(4, "little") for pairs in run(decode._INT8.value, 2, *words))
        want = [value for b, zero in zip(codes, zeros, strict=True) for value in ((b & 15) - zero, (b >> 4) - zero)]
        assert [value - 256 * (value > 127) for value in got] == want
