// fp8_matmul: y = act(x @ (weight * scale)^T + bias) + residual, the weight in FP8 with a scale per block.
//
//   weight   (N, K)  e4m3fn or e5m2, one byte a value
//   scale    (ceil(N / block_n), ceil(K / block_k))  f32, or e8m0 (powers of two); finite and above zero
//            a value stands for code * scale[n / block_n, k / block_k]; a block of -1 is the whole dimension
//   y        f32, bf16 or f16, x's dtype; x in f16 counts as the same numbers in f32, and y is rounded once
// Decoding is exact for all 256 codes of both formats: zeros, subnormals, infinities of e5m2, NaN.
//
// K is cut into steps of S = gcd(block_k, 128) values (128 for a block of the whole dimension):
//   acc[b]   = sum_{k in step b} x[m, k] * weight[n, k]    as fused_matmul sums: f32 FMA for f32, products and sums in
//                                                          f32 for bf16
//   z        = sum_b acc[b] * scale[n, b]                  one FMA a step, in the order of b (scalar: multiply, add)
//   y        = act(z + bias) + residual, gated too, as fused_matmul
// A result depends neither on M, the neighbours, nor the number of threads. NaN and inf follow IEEE.
// Subnormal numbers count whatever the caller's thread flushes, a scale of 2^-127 too; but for VDPBF16PS and BFDOT,
// which take a subnormal x and sum as zero.
//
// activations = "fp8": x is first cast to e4m3fn in blocks of 1 x 128, as DeepGEMM does it:
//   amax     = max(max |x[m, block]|, 1e-4)
//   x_scale  = amax / 448
//   x_q      = e4m3fn(x * (1 / x_scale))   round half to even, at most 448 in size; NaN stays NaN
//   z        = sum_b acc[b] * (x_scale[m, b] * scale[n, b])     the sums as for bf16
//
// fp8_scaled_mm: the same from the x_q and x_scale of a caller, both formats, their blocks any number of rows by 128 or
// all of the columns; x_scale is taken as it is, any f32.
//
// fp8_quantize_weight, for a block of a finite w:
//   scale    = max(max |w[block]|, 1e-4) / largest         448 for e4m3fn, 57344 for e5m2
//   weight   = w * (1 / scale)                             round half to even, at most the largest in size
// each operation rounded to f32.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/block_scale.h"
#include "csrc/gemm/linear.h"

namespace dsf {

// What torch.nn.functional.scaled_mm is given, with one value of a scale for each block.
struct ScaledMmCall {
  LinearWeight mat_a;      // (M, K), blocks of 128 or all of the columns
  LinearWeight mat_b;      // (N, K): transposed
  const TensorView* bias;  // (N) of y's dtype, or null
  Dtype dtype;             // of y
};

extern "C" {

// Fills *args from a call (all but y, y_stride and, with a plain weight, packed). Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fp8_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem);

// Whether the weight and its scale can be packed. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fp8_matmul_pack_check(const LinearWeight* weight, Problem* problem);
DSF_API int64_t dsf_fp8_matmul_packed_bytes(const LinearWeight* weight);
DSF_API void dsf_fp8_matmul_pack(const Context* context, const LinearWeight* weight, void* packed);

DSF_API int64_t dsf_fp8_matmul_workspace_bytes(const Context* context, const LinearArgs* args);
DSF_API void dsf_fp8_matmul(const Context* context, const LinearArgs* args);

// The same from a plain weight, packed a panel at a time in the workspace: the same bits.
DSF_API int64_t dsf_fp8_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                                     const LinearWeight* weight);
DSF_API void dsf_fp8_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight);

// All of the above.
DSF_API const LinearRoom* dsf_fp8_matmul_room();

// Fills *args from a call (all but y, y_stride, packed and, where mat_a is no rows, x). Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fp8_scaled_mm_check(const ScaledMmCall* call, LinearArgs* args, Problem* problem);
// args->x are mat_a's values; they, mat_b's and both scales are rows: dsf_row_stride >= 0. The workspace is that of
// dsf_fp8_matmul_plain.
DSF_API void dsf_fp8_scaled_mm(const Context* context, const LinearArgs* args, const LinearWeight* mat_a,
                               const LinearWeight* mat_b);

// w (N, K) f32, bf16 or f16, dtype the format of the codes. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fp8_quantize_weight_check(const TensorView* w, const Block* block, Dtype dtype, Problem* problem);
// For rows of w: codes (N, K) and scale (one value a block), both contiguous. Returns 1, or 0 and *problem where w
// holds NaN or inf; what is in codes and scale then has no meaning. It is fp8_cast's mode "deepgemm".
DSF_API int32_t dsf_fp8_quantize_weight(const Context* context, const TensorView* w, const Block* block, Dtype dtype,
                                        uint8_t* codes, float* scale, Problem* problem);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_fp8_matmul_variant(int32_t i, const char** name);
}
}  // namespace dsf
