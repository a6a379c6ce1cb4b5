// Casts with a scale per 128 values of a row, in one pass: a block is 16 lanes' 8 values each.
//
// amax by four shuffles among the lanes; every lane then makes the scale by itself (the same instructions, no branch
// between lanes of a warp); codes leave in 8-byte stores. A thread takes UNROLL blocks at a time, all loads ahead of
// the first use: 64 bytes of bf16 in flight a thread, 128 KiB a multiprocessor, where a copy at full speed needs
// about 40. Any M and K; x at a stride or off 16 bytes takes loads of single values.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/fp8_cast/cuda_block.h"

namespace dsf::fp8_cast {
namespace {

constexpr int THREADS = 256, LANES = 16, VALUES = CUDA_BLOCK / LANES, UNROLL = 4;
constexpr int GROUPS = THREADS / LANES, BLOCKS_PER_CTA = GROUPS * UNROLL;

__device__ float widened(float v) { return v; }
__device__ float widened(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ float widened(__half v) { return __half2float(v); }

template <class T>
struct alignas(16) Loaded {
  T values[VALUES];
};

// A lane's values of a block; zeros beyond the row's end.
template <class T, bool whole>
__device__ Loaded<T> load(const T* x, int64_t k, int64_t K) {
  Loaded<T> loaded;
  if constexpr (whole) {
    constexpr int WORDS = int(sizeof(loaded) / sizeof(uint4));
    const auto* from = reinterpret_cast<const uint4*>(x + k);
    auto* to = reinterpret_cast<uint4*>(&loaded);
#pragma unroll
    for (int w = 0; w < WORDS; ++w) to[w] = k < K ? __ldcs(from + w) : uint4{0, 0, 0, 0};
  } else {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) loaded.values[i] = k + i < K ? x[k + i] : T(0.0f);
  }
  return loaded;
}

// whole: K and the stride are multiples of VALUES and x of 16 bytes, so that a lane has all of its values or none.
template <class T, Dtype format, bool whole>
__global__ void __launch_bounds__(THREADS) cast_1x128(CudaCast cast) {
  const int lane = int(threadIdx.x) % LANES, group = int(threadIdx.x) / LANES;
  const int64_t blocks = cast.M * cast.col_blocks, first = int64_t(blockIdx.x) * BLOCKS_PER_CTA;
  const int64_t first_row = first / cast.col_blocks, first_column = first % cast.col_blocks;
  const auto* x = static_cast<const T*>(cast.x);
  Loaded<T> loaded[UNROLL];
  int64_t row[UNROLL], column[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    column[u] = first_column + u * GROUPS + group;
    row[u] = first_row;
    if (column[u] >= cast.col_blocks) {
      row[u] += column[u] / cast.col_blocks;
      column[u] %= cast.col_blocks;
    }
    const int64_t k = column[u] * CUDA_BLOCK + lane * VALUES;
    loaded[u] = load<T, whole>(x + row[u] * cast.x_stride, k, row[u] < cast.M ? cast.K : 0);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    if (first + u * GROUPS + group >= blocks) return;  // of all 16 lanes; shuffles below name only these
    // amax = x.abs().amax(), of the block
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      const uint32_t bits = size_bits(widened(loaded[u].values[i]), cast.ignore_nan);
      amax = bits > amax ? bits : amax;
    }
    const unsigned lanes = 0xFFFFu << (threadIdx.x & LANES);
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(lanes, amax, step, LANES);
      amax = other > amax ? other : amax;
    }
    const BlockScale block = scale_of(cast.rule, amax);
    if (lane == 0) {
      const int64_t at = row[u] * cast.scale_row_stride + column[u] * cast.scale_col_stride;
      if (cast.rule.kind == ScaleKind::f32)
        static_cast<float*>(cast.scale)[at] = block.scale;
      else
        static_cast<uint8_t*>(cast.scale)[at] = block.code;
    }
    // codes = encode(x * factor)
    alignas(8) uint8_t codes[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; ++i) codes[i] = code_of<format>(cast, widened(loaded[u].values[i]), block.factor);
    const int64_t k = column[u] * CUDA_BLOCK + lane * VALUES;
    uint8_t* to = cast.codes + row[u] * cast.K + k;
    if constexpr (whole) {
      if (k < cast.K) __stcs(reinterpret_cast<uint2*>(to), *reinterpret_cast<const uint2*>(codes));
    } else {
#pragma unroll
      for (int i = 0; i < VALUES; ++i)
        if (k + i < cast.K) to[i] = codes[i];
    }
  }
}

template <class T, Dtype format>
cudaError_t launch(const CudaCast& cast, cudaStream_t stream) {
  const int64_t blocks = cast.M * cast.col_blocks;
  const auto grid = unsigned((blocks + BLOCKS_PER_CTA - 1) / BLOCKS_PER_CTA);
  const bool whole =
      cast.K % VALUES == 0 && cast.x_stride % VALUES == 0 && reinterpret_cast<uintptr_t>(cast.x) % 16 == 0;
  if (whole)
    cast_1x128<T, format, true><<<grid, THREADS, 0, stream>>>(cast);
  else
    cast_1x128<T, format, false><<<grid, THREADS, 0, stream>>>(cast);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_of(const CudaCast& cast, cudaStream_t stream) {
  return cast.dtype == Dtype::f8e4m3 ? launch<T, Dtype::f8e4m3>(cast, stream) : launch<T, Dtype::f8e5m2>(cast, stream);
}

}  // namespace

// The largest number of blocks that one launch takes: grid.x has 31 bits.
int64_t cuda_cast_most_blocks() { return int64_t{0x7FFFFFFF} * BLOCKS_PER_CTA; }

const char* cuda_cast(const CudaCast& cast, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cast.x_dtype == Dtype::f32    ? launch_of<float>(cast, on)
                            : cast.x_dtype == Dtype::bf16 ? launch_of<__nv_bfloat16>(cast, on)
                                                          : launch_of<__half>(cast, on);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace dsf::fp8_cast
