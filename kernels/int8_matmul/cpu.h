// int8_matmul: y = act(x @ (q * scale)^T + bias) + residual, the weight in int8 with a scale per output channel.
//
// activations = "int8" (W8A8): each row of x is quantized symmetrically, then multiplied in integers.
//   amax      = max |x[m, :]|
//   x_scale   = amax / 127
//   inverse   = 127 / amax        (0 where amax < 2^-100: such a row counts as zeros)
//   x_q       = round_half_even(x * inverse)          in [-127, 127], no clamp needed
//   acc       = sum_k x_q[m, k] * q[n, k]             exact in int32 for K <= 131,071 (127 * 128 * K < 2^31)
//   y         = (float(acc) * x_scale) * scale[n] + bias[n]      each operation rounded to f32, no contraction
//   then activation, + residual, one rounding to y's dtype. gated: q, scale and bias have 2 N rows;
//   y1 -> act(y1) -> * y3 -> + residual -> one rounding, y1 being the first N outputs and y3 the last.
//   A row with NaN or inf gives a row of NaN. Every step is an exactly rounded operation in a fixed order, so results
//   are bit-equal on every ISA level, thread count and door.
// activations = "float" (W8A16): acc = sum_k x[m, k] * float(q[n, k]) as in fused_matmul, y = acc * scale[n] + bias[n].
// x in f16 counts as the same numbers in f32, here and below; only y is rounded, once.
//
// Quantization of a weight row is the same rule as of an activation row; a row of zeros has scale 0.
// u8 x s8 instructions see x_q + 128; the excess 128 * sum_k q[n, k] is packed with the weight and taken off exactly.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/linear.h"

namespace dsf {
inline constexpr int64_t INT8_MAX_K = 131071;  // largest K whose W8A8 sums fit int32

extern "C" {

// Fills *args from a call (all but y, y_stride and, with a plain weight, packed). Returns 1, or 0 and *problem.
DSF_API int32_t dsf_int8_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem);

// Whether q can be packed: (N, K) int8. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_int8_matmul_pack_check(const LinearWeight* q, Problem* problem);
DSF_API int64_t dsf_int8_matmul_packed_bytes(const LinearWeight* q);
DSF_API void dsf_int8_matmul_pack(const Context* context, const LinearWeight* q, void* packed);

DSF_API int64_t dsf_int8_matmul_workspace_bytes(const Context* context, const LinearArgs* args);
DSF_API void dsf_int8_matmul(const Context* context, const LinearArgs* args);

// The same from a plain weight, packed a panel at a time in the workspace: the same bits.
DSF_API int64_t dsf_int8_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                                      const LinearWeight* weight);
DSF_API void dsf_int8_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight);

// All of the above.
DSF_API const LinearRoom* dsf_int8_matmul_room();

// weight (N, K) f32, bf16 or f16, rows at row_stride elements -> q (N, K) int8 contiguous, scale (N) f32.
DSF_API int32_t dsf_int8_quantize_weight_check(const TensorView* weight, Problem* problem);
DSF_API void dsf_int8_quantize_weight(const Context* context, Dtype dtype, const void* weight, int64_t row_stride,
                                      int64_t N, int64_t K, int8_t* q, float* scale);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_int8_matmul_variant(int32_t i, const char** name);
}
}  // namespace dsf
