"""What is measured of fp8_cast and its family; cases.py hands it on as BENCH.

A row is bound by the bytes that it reads and writes: 8 Ki elements lie in L1 (and are cast again and again by the
kernel alone, as a call takes longer), 128 Ki in L2, 1 Mi in L3 (on the CPU of
the baseline: 48 KiB, 1 MiB, 32 MiB), 64 Mi in memory. The gate compares rows of at least 20 us, hence those of 1 Mi.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

E4M3, E5M2, E2M1 = "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2"
NUM_FINITE = {E4M3: 127, E5M2: 124}  # codes from zero to the largest number; the same again, negative, from 128 on
SCALE_BYTES = {"f32": 4, "ue8m0": 1, "e4m3": 1}
NO_BLOCK = None
ROW, TENSOR = (1, -1), (-1, -1)
WHOLE_ROWS = 8192  # columns of a plain cast


@dataclass(frozen=True)
class Bench:
    """One measured size of one op; M x K is the shape of the codes."""

    op: str  # the public function
    M: int
    K: int
    source: str  # dtype read
    target: str  # dtype written
    block: tuple[int, int] | None = NO_BLOCK
    scale: str = "f32"
    mode: str = "deepgemm"
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    times: int = 0  # kernel calls behind one call of the NumPy door; 0: the public function
    flops: int = 0
    rate: None = None  # of arithmetic: its ceiling is a copy of as many bytes

    @property
    def id(self) -> str:
        words = [] if self.op in PLAIN_NAMES else [self.op.removesuffix("_cast")]
        words += [f"{self.M}x{self.K}", *(_short(name) for name in (self.source, self.target))]
        if self.block:
            words.append("x".join("all" if size < 0 else str(size) for size in self.block))
        return "-".join(words + [self.scale] * (self.scale != "f32") + ["kernel"] * (self.times > 0))

    @property
    def elements(self) -> int:
        """Numbers cast."""
        return self.M * self.K * max(self.times, 1)

    @property
    def alone(self) -> bool:
        """Without peers: they have no call that is their kernel alone."""
        return self.times > 0

    @property
    def bytes(self) -> int:
        """What is read, and codes and scales, or numbers, written; each time anew."""
        return self.working_set * max(self.times, 1)

    @property
    def working_set(self) -> int:
        """Everything once."""
        halves = 2 if self.op == "silu_mul_cast" else 1  # gate and up
        weight = self.K * _bits(self.source) if self.op == "rms_norm_cast" else 0
        bits = self.M * self.K * (halves * _bits(self.source) + _bits(self.target)) + weight
        return bits // 8 + self.num_scales * SCALE_BYTES[self.scale]

    @property
    def num_scales(self) -> int:
        if self.op == "int8_cast":
            return self.M
        sizes = zip((self.M, self.K), self.block or (), strict=False)
        return math.prod(1 if part < 0 else -(-size // part) for size, part in sizes) if self.block else 0

    @property
    def level(self) -> str:
        """Where the working set lies: "L1", "L2", "L3" or "memory"."""
        from deepseek_fast.bench import ceiling

        return ceiling.level(self.working_set)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op: finite numbers, none beyond the format."""
        if self.op == "fp8_dequantize":
            return self._codes(generator)
        columns = 2 * self.K if self.op == "silu_mul_cast" else self.K
        inputs: dict[str, Any] = {"x": _normal(generator, self.source, self.M, columns)}
        if self.op == "int8_cast":
            return inputs
        if self.op == "rms_norm_cast":
            inputs["weight"] = _normal(generator, self.source, self.K)
        kinds = {} if self.block is None else {"scale": self.scale, "mode": self.mode}
        return inputs | {"block": self.block, "dtype": getattr(torch, self.target)} | kinds

    def _codes(self, generator: torch.Generator) -> dict[str, Any]:
        finite = NUM_FINITE[self.source]
        codes = torch.randint(0, 2 * finite, (self.M, self.K), generator=generator, dtype=torch.uint8)
        codes += (codes >= finite).to(torch.uint8) * (128 - finite)
        inputs = {"codes": codes.view(getattr(torch, self.source)), "dtype": getattr(torch, self.target)}
        if self.block is None:
            return inputs
        shape = [-(-size // part) for size, part in zip((self.M, self.K), self.block, strict=True)]
        return inputs | {"scale": 0.5 + torch.rand(shape, generator=generator), "block": self.block}

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        """The public function, as users call it: its checks and its new tensors are part of the time.

        With `times` the kernel, again and again between the same two buffers: what a cast of values that lie in L1
        takes where the call around it takes longer than the work.
        """
        from deepseek_fast.kernels.fp8_cast import op

        if self.times == 0:
            return partial(getattr(op, self.op), **inputs)
        return partial(_again, self.op, self.times, {name: _to_numpy(value) for name, value in inputs.items()})


def _again(op: str, times: int, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    from deepseek_fast._load import native

    results = getattr(native(), f"{op}_repeated")(**inputs, times=times)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(_from_numpy(array) for array in results)


def _to_numpy(value: Any) -> Any:
    """Over the same memory; a dtype by its name."""
    import ml_dtypes

    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype in (torch.float32, torch.float16):
        return value.numpy()
    bits = torch.int16 if value.element_size() == 2 else torch.uint8
    return value.view(bits).numpy().view(getattr(ml_dtypes, str(value.dtype).removeprefix("torch.")))


def _from_numpy(array: Any) -> torch.Tensor:
    if array.dtype.name in ("float32", "float16"):
        return torch.from_numpy(array)
    bits = "int16" if array.itemsize == 2 else "uint8"
    return torch.from_numpy(array.view(bits)).view(getattr(torch, array.dtype.name))


PLAIN_NAMES = ("fp8_cast", "fp8_dequantize", "int8_cast")  # whose dtypes say what they do


def _short(dtype: str) -> str:
    return dtype.removeprefix("float8_").removeprefix("float4_").removesuffix("_x2")


def _bits(dtype: str) -> int:
    """Of a number."""
    return 4 if dtype == E2M1 else 8 * int(getattr(torch, dtype).itemsize)


def _normal(generator: torch.Generator, dtype: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(getattr(torch, dtype))


SIZES = ((128 << 10, "L2"), (64 << 20, "memory"))  # elements, and where they lie
TIMES = 1000
ALONE = ((8 << 10, "L1", TIMES), (128 << 10, "L2", TIMES // 10))  # the kernel, so many times
OF_GATE = 1 << 20
# (read, written, also with as many elements as the gate compares)
DECODED = ((E4M3, "bfloat16", True), (E4M3, "float32", False), (E5M2, "bfloat16", False))
ENCODED = (("float32", E4M3, True), ("bfloat16", E4M3, True), ("float16", E4M3, False))


def _plain(op: str, kinds: tuple[tuple[str, str, bool], ...], verb: str) -> Iterator[Bench]:
    for source, target, gated in kinds:
        for size, level in SIZES:
            yield Bench(op, size // WHOLE_ROWS, WHOLE_ROWS, source, target, why=f"{verb} in {level}")
        for size, level, times in ALONE:
            yield Bench(op, size // WHOLE_ROWS, WHOLE_ROWS, source, target, why=f"{verb} in {level}", times=times)
        if gated:
            rows = OF_GATE // WHOLE_ROWS
            yield Bench(op, rows, WHOLE_ROWS, source, target, why=f"{verb} in L3", quick=True)


# (M, K, why, quick) of activations with DeepSeek's blocks
TOKENS = (
    (32, 4096, "activations of a small batch, L2", False),
    (256, 4096, "activations of a prefill, L3", True),
    (8192, 7168, "activations of DeepSeek-V3, memory", False),
)
BENCH = (
    *_plain("fp8_dequantize", DECODED, "decoding"),
    *_plain("fp8_cast", ENCODED, "encoding"),
    *(
        Bench("fp8_cast", M, K, source, E4M3, (1, 128), why=why, quick=quick and source == "bfloat16")
        for M, K, why, quick in TOKENS
        for source in ("bfloat16", "float32")
    ),
    *(
        Bench("fp8_cast", 2, 4096, source, E4M3, (1, 128), why="in L1", times=TIMES)
        for source in ("bfloat16", "float32")
    ),
    Bench("fp8_cast", 4096, 4096, "bfloat16", E4M3, (128, 128), why="a weight with DeepSeek's blocks", quick=True),
    Bench("fp8_cast", 4096, 4096, "bfloat16", E4M3, ROW, why="one scale a row"),
    Bench("fp8_cast", 4096, 4096, "bfloat16", E4M3, TENSOR, why="one scale: x is read twice"),
    Bench("fp8_cast", 4096, 4096, "bfloat16", E4M3, (1, 32), "ue8m0", "torchao", why="MXFP8 as OCP defines it"),
    Bench("fp8_cast", 4096, 4096, "bfloat16", E2M1, (1, 16), "e4m3", "torchao", why="NVFP4"),
    Bench("fp8_dequantize", 4096, 4096, E4M3, "bfloat16", (128, 128), why="a weight of a checkpoint"),
    Bench("int8_cast", 256, 4096, "bfloat16", "int8", why="what int8_matmul does to x"),
    Bench("silu_mul_cast", 256, 2048, "bfloat16", E4M3, (1, 128), why="DeepSeek-V3 expert, before down", quick=True),
    Bench("rms_norm_cast", 256, 7168, "bfloat16", E4M3, (1, 128), why="DeepSeek-V3 hidden state", quick=True),
)
