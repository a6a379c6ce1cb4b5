// What the linear rooms share: the arguments of y = act(x W^T * scales + bias) + residual, their checks,
// the packed weight's header, and the walk over its panels. A gated weight has 2 N rows, those of the gate and then
// those of the other factor, as have its scales and its bias; with z = x W^T * scales + bias, in f32:
//   y = act(z[:, :N]) * z[:, N:] + residual       the activation, the product, the sum, then one rounding to y's dtype
//
//   x         (M, K)  rows of K contiguous values at x_stride; any outer dimensions are folded into M
//   packed    the weight (N, K) in panels of PANEL_N columns, behind a PackedHeader
//   bias      (N)     x's dtype, or null; gated: (2 N)
//   residual  (M, N)  x's dtype, rows at residual_stride, or null; may be y itself, may not overlap it otherwise
//   y         (M, N)  x's dtype, rows at y_stride; overlaps nothing else
// Pointers need the alignment of their element type only.
#pragma once
#include <cstdint>

#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

// Every activation, once; calls, sentences and kernels take the names from here.
#define DSF_ACTIVATIONS(entry)                                                                                  \
  entry(none) entry(relu) entry(relu6) entry(gelu) entry(gelu_tanh) entry(silu) entry(hardswish) entry(sigmoid) \
      entry(tanh)
#define DSF_ENTRY(name) name,
enum class Activation : int32_t { DSF_ACTIVATIONS(DSF_ENTRY) };
#undef DSF_ENTRY

struct LinearArgs {
  Dtype dtype;  // of x, bias, residual and y: f32, bf16 or f16
  Activation activation;
  int32_t float_activations;  // 0 quantizes x (int8_matmul, int4_matmul: to int8; fp8_matmul: to FP8), 1 keeps it
  int64_t M, N, K;            // N: of y
  int32_t gated;
  const void* x;
  int64_t x_stride;
  const void* packed;
  const float* scale;  // int8_matmul: (N), gated (2 N), else null
  const void* bias;
  const void* residual;
  int64_t residual_stride;
  float residual_constant;  // a one-element residual; 0 without one
  void* y;
  int64_t y_stride;
  // Of a gated product, set by walk for a chunk of rows: act(z) of one panel of the gate, rows of PANEL_N from gate_m
  // on.
  float* gate;
  int64_t gate_m;
};

// Writes rows [m_begin, m_end) of x, f16, as f32: row m at rows + m * K.
using WidenX = void (*)(const LinearArgs& args, int64_t m_begin, int64_t m_end, float* rows);

// A weight as a model holds it: values and what turns them into numbers.
struct LinearWeight {
  TensorView values;                  // (N, K)
  const TensorView* scale;            // null where the room has none
  int64_t block_n;                    // rows and columns of values that share a scale; -1: all of them
  int64_t block_k;                    // int4_matmul: group_size
  const TensorView* zeros = nullptr;  // int4_matmul: a zero point beside every scale, or null
  int64_t in_features = -1;           // int4_matmul: K, where a last byte may hold one value or two; -1: two
  bool gated = false;                 // as the caller states it, of a packed weight too
};

// A door's call before it is checked. Where weight_is_packed, weight.values is a packed tensor (1-D uint8).
struct LinearCall {
  TensorView x;
  LinearWeight weight;
  int32_t weight_is_packed;
  int64_t out_features;        // with a packed weight: N as the caller states it; -1: take the packed tensor's word
  const TensorView* bias;      // may be null
  const TensorView* residual;  // may be null
  const char* activation;      // a name of DSF_ACTIVATIONS; NUL-terminated
  const char* activations;     // what x becomes: "int8", "fp8" or "float"; null for a room without the choice
};

// A linear room's functions, as every door calls them (their contracts: kernels/<op>/cpu.h).
struct LinearRoom {
  const char* op;          // "int8_matmul"
  const char* weight_arg;  // "q"
  int32_t packs_scale;     // the packed weight holds the scale, which the call then leaves out
  int32_t (*check)(const LinearCall* call, LinearArgs* args, Problem* problem);
  int32_t (*pack_check)(const LinearWeight* weight, Problem* problem);
  // Both for a checked weight whose values are rows: dsf_row_stride(values) >= 0.
  int64_t (*packed_bytes)(const LinearWeight* weight);
  void (*pack)(const Context* context, const LinearWeight* weight, void* packed);
  int64_t (*workspace_bytes)(const Context* context, const LinearArgs* args);
  void (*run)(const Context* context, const LinearArgs* args);
  // Both from a plain weight, as packed_bytes wants it, with args->packed unset; null: a caller packs it and runs that.
  int64_t (*plain_workspace_bytes)(const Context* context, const LinearArgs* args,
                                   const LinearWeight* weight) = nullptr;
  void (*run_plain)(const Context* context, const LinearArgs* args, const LinearWeight* weight) = nullptr;
};

}  // namespace dsf
