// int4_matmul: y = act(x @ w^T + bias) + residual, the weight in 4 bits with a scale per row and group of k.
//
//   q       (N, ceil(K / 2)) u8   two codes of 0 to 15 a byte, the one of even k in the low nibble
//   scale   (N, groups) f32       finite; negative and zero too: quantizers that map the largest magnitude to code 0
//                                 write negative scales, and zeros for a group of zeros (ONNX Runtime's does both)
//   zeros   (N, groups) u8        0 to 15; null: 8 everywhere
//   w[n, k] = (q[n, k] - zeros[n, k / group_size]) * scale[n, k / group_size]
//   group_size is 32, 64 or 128, the last group perhaps short, or -1: one group a row. K may be any size >= 0; where it
//   is odd, the last high nibble is not read.
//
// compute = "int8" (W4A8): each row of x is quantized in blocks of k, a block being a group (128 where group_size =
// -1):
//   amax    = max |x[m, block]|
//   x_scale = amax / 127
//   inverse = 127 / amax          (0 where amax < 2^-100: such a block counts as zeros)
//   x_q     = round_half_even(x * inverse)              in [-127, 127], no clamp needed
//   acc[b]  = sum_{k in b} x_q[m, k] * (q[n, k] - zero) exact in int32: at most 128 * 127 * 15 < 2^18
//   z       = 0; for b in order: z = z + (float(acc[b]) * x_scale[m, b]) * scale[n, b]
//   y       = act(z + bias) + residual, one rounding to y's dtype; gated: q, scale, zeros and bias have 2 N rows, and
//             act(z1 + bias1) -> * (z3 + bias3) -> + residual -> one rounding, of the first N and the last N outputs
//   Each operation is rounded to f32, none contracted. NaN or inf in a row of x makes its block's x_scale NaN, hence
//   the row of y. Every step is an exactly rounded operation in a fixed order, so results are bit-equal on every ISA
//   level, thread count and door.
// compute = "float" (W4A16): x stays as it is.
//   acc[b]  = sum_{k in b} x[m, k] * (q[n, k] - zero)   summed as fused_matmul sums; q - zero is exact in bf16 and f32
//   z       = sum_b acc[b] * scale[n, b]                one FMA a block, in the order of b (scalar: multiply, add)
//   y       = act(z + bias) + residual
// x and w in f16 count as the same numbers in f32; only y is rounded, once.
// A result depends neither on M, the neighbours, nor the number of threads.
//
// u8 x s8 instructions see q as the u8 and x_q as the s8. The zero point comes in as the start of a sum:
// -zero * sum_{k in b} x_q[m, k], where |sum| <= 128 * 127 fits s16.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/linear.h"

namespace dsf {
extern "C" {

// Fills *args from a call (all but y, y_stride and, with a plain weight, packed). Returns 1, or 0 and *problem.
// The weight's group_size is its block_k; block_n is not read.
DSF_API int32_t dsf_int4_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem);

// Whether q, its scale and its zeros can be packed. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_int4_matmul_pack_check(const LinearWeight* weight, Problem* problem);
DSF_API int64_t dsf_int4_matmul_packed_bytes(const LinearWeight* weight);
DSF_API void dsf_int4_matmul_pack(const Context* context, const LinearWeight* weight, void* packed);

DSF_API int64_t dsf_int4_matmul_workspace_bytes(const Context* context, const LinearArgs* args);
DSF_API void dsf_int4_matmul(const Context* context, const LinearArgs* args);

// All of the above.
DSF_API const LinearRoom* dsf_int4_matmul_room();

// What int4_quantize_weight writes, all contiguous, for a weight w (N, K) and groups of group_size:
//   symmetric    scale = m / -8, m being the group's value of largest magnitude (the first of several); zero = 8
//                q = min(round_half_even(w * (-8 / m)) + 8, 15)
//   asymmetric   scale = f32((hi - lo) / 15) in f64, lo = min(w, 0), hi = max(w, 0); inverse = 1 / scale
//                zero = round_half_even(-lo * inverse), q = clamp(round_half_even(w * inverse) + zero, 0, 15)
//   A group with |m| < 2^-100 (hi - lo < 2^-100) counts as zeros: scale 1, zero 8, q 8. The last high nibble is 0
//   where K is odd.
struct Int4Weight {
  uint8_t* q;      // (N, ceil(K / 2))
  float* scale;    // (N, groups)
  uint8_t* zeros;  // (N, groups)
};
DSF_API int32_t dsf_int4_quantize_weight_check(const TensorView* w, int64_t group_size, Problem* problem);
DSF_API int64_t dsf_int4_groups(int64_t K, int64_t group_size);
// For a checked w whose values are rows. Returns 1, or 0 and *problem where w holds NaN or inf.
DSF_API int32_t dsf_int4_quantize_weight(const Context* context, const TensorView* w, int64_t group_size,
                                         int32_t symmetric, const Int4Weight* target, Problem* problem);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_int4_matmul_variant(int32_t i, const char** name);
}
}  // namespace dsf
