"""The rules that CUDA C++ casts use, run on the host: the bits of the CPU's kernels."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.fp8_cast.cases import F32_MODES, UE8M0_MODES
from tests.doors import ROOT

SOURCE = """
#include "kernels/fp8_cast/cast.h"
#include "kernels/fp8_cast/cuda_block.h"
using namespace dsf;
using namespace dsf::fp8_cast;

template <Dtype format>
void cast_rows(const CudaCast& cast, const float* x, uint8_t* codes, float* scale, uint8_t* scale_codes) {
  for (int64_t b = 0; b < cast.M; ++b, x += CUDA_BLOCK, codes += CUDA_BLOCK) {
    uint32_t amax = 0;
    for (int i = 0; i < CUDA_BLOCK; ++i) {
      const uint32_t bits = size_bits(x[i], cast.ignore_nan);
      amax = bits > amax ? bits : amax;
    }
    const BlockScale block = scale_of(cast.rule, amax);
    scale[b] = block.scale, scale_codes[b] = block.code;
    for (int i = 0; i < CUDA_BLOCK; ++i) codes[i] = code_of<format>(cast, x[i], block.factor);
  }
}

extern "C" void cast_blocks(const float* x, int64_t blocks, int e5m2, int bf16, int mode, int ue8m0, int saturate,
                            uint8_t* codes, float* scale, uint8_t* scale_codes) {
  CastArgs args{};
  args.x_dtype = bf16 ? Dtype::bf16 : Dtype::f32;
  args.dtype = e5m2 ? Dtype::f8e5m2 : Dtype::f8e4m3;
  args.mode = CastMode(mode), args.kind = ue8m0 ? ScaleKind::ue8m0 : ScaleKind::f32;
  CudaCast cast{};
  cast.M = blocks;
  cast.rule = rule_of(args);
  cast.divide = divides(args.mode) && !ue8m0, cast.ignore_nan = ignores_nan(args.mode), cast.saturate = saturate;
  if (e5m2)
    cast_rows<Dtype::f8e5m2>(cast, x, codes, scale, scale_codes);
  else
    cast_rows<Dtype::f8e4m3>(cast, x, codes, scale, scale_codes);
}
"""
ENUM = (
    "v3",
    "v32",
    "deepgemm",
    "tilekernels",
    "vllm",
    "te",
    "torchao",
    "torchao_ceil",
    "torchao_even",
    "torchao_rceil",
)
CASES = [
    *itertools.product(F32_MODES, ("f32",), (torch.float8_e4m3fn, torch.float8_e5m2), (True, False)),
    *itertools.product(UE8M0_MODES, ("ue8m0",), (torch.float8_e4m3fn, torch.float8_e5m2), (True, False)),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("cuda_block")
    source, made = folder / "cast.cc", folder / "cast.so"
    source.write_text(SOURCE)
    flags = ["-std=c++20", "-O1", "-march=x86-64-v2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def blocks_of(dtype: torch.dtype) -> torch.Tensor:
    """Every bfloat16 there is, 128 to a block; random blocks of all sizes with NaN, infinity and zeros among them."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float().reshape(-1, 128)
    sizes = torch.ldexp(torch.randn(512, 128), torch.randint(-140, 120, (512, 1)))
    for value in (torch.nan, torch.inf, -torch.inf, 0.0):
        sizes = torch.where(torch.rand_like(sizes) < 0.002, value, sizes)
    shuffled = every[:, torch.randperm(128)][torch.randperm(512)]
    x = torch.cat((every, sizes, shuffled, torch.zeros(1, 128)))
    return x.to(torch.bfloat16).float() if dtype == torch.bfloat16 else x


@pytest.mark.parametrize(("mode", "scale", "format", "saturate"), CASES)
def test_rules_give_the_cpu_kernels_bits(
    library: ctypes.CDLL, mode: str, scale: str, format: torch.dtype, saturate: bool
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = blocks_of(dtype)
        codes, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
        bytes_ = torch.empty(len(x), dtype=torch.uint8)
        library.cast_blocks(
            *(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(len(x)), int(format == torch.float8_e5m2)),
            *(int(dtype == torch.bfloat16), ENUM.index(mode), int(scale == "ue8m0"), int(saturate)),
            *(ctypes.c_void_p(result.data_ptr()) for result in (codes, scales, bytes_)),
        )
        options = {"dtype": format, "mode": mode, "scale": scale, "saturate": saturate}
        want_codes, want = deepseek_fast.fp8_cast(x.to(dtype), **options)
        assert torch.equal(codes, want_codes.view(torch.uint8))
        if scale == "ue8m0":
            assert torch.equal(bytes_, want[:, 0].view(torch.uint8))
        else:
            assert torch.equal(scales.view(torch.int32), want[:, 0].view(torch.int32))


def test_the_gate_of_the_cuda_library_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import cuda_library

    usage = "Function _cast:\n  REG:40 STACK:16 SHARED:0\n"
    answers = {"-lelf": "x.1.sm_80.cubin", "-lptx": "x.1.sm_90.ptx", "--dump-resource-usage": usage}
    monkeypatch.setattr(cuda_library, "cuobjdump", lambda option, library: answers[option])
    library = tmp_path / "library.so"
    library.write_bytes(b"")
    missing = [f"has no machine code for {chip}" for chip in cuda_library.CHIPS[1:]]
    assert cuda_library.faults(library) == [*missing, "_cast spills 16 bytes"]
