// fused_matmul: y = act(x @ weight^T + bias) + residual
//
// f32:  every output is one chain of K fused multiply-adds in the order of k (scalar level: multiply, then add),
//       so a result depends neither on M, N, the neighbours, nor the number of threads.
// bf16: products and sums in f32; pairs of k in one VDPBF16PS or BFDOT where the level has it (which reads subnormal
//       inputs as zero and writes subnormal sums as zero; BFDOT rounds to odd), else two fused multiply-adds. TDPBF16PS
//       (AMX) flushes alike and sums the even and the odd ones of every 32 values of k apart. One rounding to bf16 at
//       the end.
// f16:  the f32 result of the same numbers, every f16 being one, rounded once to f16 at the end: subnormal numbers are
//       kept exactly, in and out, whatever the caller's thread flushes; sizes from 65520 on become inf, NaN a quiet
//       NaN.
// Epilogue in f32, in this order: + bias, activation, + residual, round to nearest even.
// gated: the weight has 2 N rows, bias 2 N values; z1 = the first N sums + bias, z3 = the last N; each operation
// rounded:
//   z1 -> act(z1) -> * z3 -> + residual -> one rounding to y's dtype.
// NaN and inf follow IEEE; relu keeps NaN. K = 0 gives act(bias) + residual. Any M, N, K whose byte counts fit int64.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/isa.h"
#include "csrc/gemm/linear.h"

namespace dsf {
extern "C" {

// Fills *args from a call (all but y, y_stride and, with a plain weight, packed). Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fused_matmul_check(const LinearCall* call, LinearArgs* args, Problem* problem);

// Whether weight can be packed: (N, K), f32, bf16 or f16. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fused_matmul_pack_check(const LinearWeight* weight, Problem* problem);
DSF_API int64_t dsf_fused_matmul_packed_bytes(const LinearWeight* weight);
DSF_API void dsf_fused_matmul_pack(const Context* context, const LinearWeight* weight, void* packed);

// Bytes of context->workspace that dsf_fused_matmul uses; -1 where that overflows.
DSF_API int64_t dsf_fused_matmul_workspace_bytes(const Context* context, const LinearArgs* args);
DSF_API void dsf_fused_matmul(const Context* context, const LinearArgs* args);

// The same from a plain weight, packed a panel at a time in the workspace: the same bits.
DSF_API int64_t dsf_fused_matmul_plain_workspace_bytes(const Context* context, const LinearArgs* args,
                                                       const LinearWeight* weight);
DSF_API void dsf_fused_matmul_plain(const Context* context, const LinearArgs* args, const LinearWeight* weight);

// All of the above.
DSF_API const LinearRoom* dsf_fused_matmul_room();

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_fused_matmul_variant(int32_t i, const char** name);
}
}  // namespace dsf
