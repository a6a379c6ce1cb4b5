// fused_conv: y = max_pool(act(conv2d(x, weight) + bias (+ residual)) (+ residual)), in one pass over x.
//
//   z[n, f, p, q] = bias[f] + sum over r, s, c of weight[f, c, r, s] *
//                   x[n, g C/G + c, p stride - padding + r dilation, q stride - padding + s dilation]
//
// f32, bf16:   sums in f32, started at zero, in the order r, s, c (bf16 pairs of c in one VDPBF16PS or BFDOT where the
//              level has it, which reads subnormal inputs as zero); a tap outside x is 0, or is left out: with weights
//              that are inf or NaN this differs, between paths and levels. Then in f32, in this order:
//              + bias, + residual ("before"), activation, + residual ("after"), one rounding to y's dtype.
// u8, s8:      sums of (x - x_zero_point) * weight + bias in int32, exact for C/G * R * S <= 65,793; a tap outside x is
//              x_zero_point. Then in f32, each operation rounded:
//                z = f32(sum) * (x_scale * weight_scale[f] / y_scale)              as QLinearConv
//                z + f32(residual - residual_zero_point) * (residual_scale / y_scale), before the activation or after
//                act(z), limits divided by y_scale; of a curved one act(z * y_scale) / y_scale
//                y = saturate(round_half_even(z) + y_zero_point)
// winograd:    f32, 3x3, stride 1: sums by F(4x4, 3x3); its error bound is in winograd.h.
// max_pool:    of y's values: the largest of a window's, NaN where one is NaN; what lies outside takes no part.
// A result depends neither on the layout, the number of threads, nor on the other images of the batch.
//
//   x         (N, C, H, W)  f32, bf16, u8 or s8; channels side by side (stride_c == 1: "pixels", as NHWC and
//                           channels_last) or a row's pixels side by side (stride_w == 1: "planes", as NCHW)
//   weight    (F, C/G, R, S)  x's dtype, of u8 and s8 always s8; packed: packed.h of this folder
//   bias      (F)           x's dtype, of u8 and s8 int32; or null
//   residual  (N, F, P, Q)  y's dtype, either layout, the shape before the pool; or null; may be y where nothing is
//                           pooled and both have the same strides, may not overlap it otherwise
//   y         (N, F, P, Q)  or the pooled size; either layout; overlaps nothing else
// Pointers need the alignment of their element type only. Any sizes whose byte counts fit int64.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/isa.h"
#include "csrc/core/tensor_view.h"
#include "csrc/gemm/linear.h"

namespace dsf {

constexpr bool is_8_bits(Dtype dtype) { return dtype == Dtype::u8 || dtype == Dtype::i8; }

// The linear rooms' activations, in their order, and three with parameters:
//   leaky_relu   (slope,)          z >= 0 ? z : slope * z
//   clip         (smallest, largest)
//   hardsigmoid  (alpha, beta)     min(max(alpha * z + beta, 0), 1)
#define DSF_CONV_ACTIVATIONS(entry) DSF_ACTIVATIONS(entry) entry(leaky_relu) entry(clip) entry(hardsigmoid)
#define DSF_ENTRY(name) name,
enum class ConvActivation : int32_t { DSF_CONV_ACTIVATIONS(DSF_ENTRY) };
#undef DSF_ENTRY

enum class Layout : int32_t { pixels, planes, neither = -1 };

// Two sizes, of rows and columns.
struct Pair {
  int64_t h, w;
};
struct Padding {
  int64_t top, left, bottom, right;
};
struct Window {
  Pair kernel, stride, dilation;
  Padding padding;
  int32_t
      ceil_mode;  // 1: a last window that begins inside x or its top and left padding counts, though it ends outside
};

// How a tensor of (N, C, H, W) lies in memory: elements from one index to the next.
struct Strides {
  int64_t n, c, h, w;
};

// A call as a door sees it. Views are (N, C, H, W) or (C, H, W) whatever the memory order; with a weight of three
// dimensions, (F, C / groups, S), they are (N, C, W) or (C, W), and the check puts rows of 1 in. Text and views outlive
// the call.
struct ConvCall {
  const char* op;  // in sentences
  TensorView x;
  TensorView weight;  // where weight_is_packed: 1-D uint8
  int32_t weight_is_packed;
  const TensorView* bias;
  const TensorView* residual;
  Pair stride, dilation;
  Padding padding;
  int64_t groups;
  const char* activation;  // a name of DSF_CONV_ACTIVATIONS
  const float* params;     // num_params of them
  int64_t num_params;
  const char* residual_at;  // "before" or "after" the activation
  const char* algorithm;    // of a plain weight: null, "direct", or "winograd", which wants stride and dilation 1
  int32_t has_pool;
  Window pool;  // dilation (1, 1)
  // u8 and s8:
  const TensorView* weight_scale;  // (F,) or one value, f32
  float x_scale, y_scale, residual_scale;
  int32_t x_zero_point, y_zero_point, residual_zero_point;
  Dtype y_dtype;  // of a float x: x's
  // Of a packed weight: its shape as the caller states it, 3 or 4 dimensions.
  const int64_t* weight_shape = nullptr;
  int64_t weight_ndim = 0;
};

struct ConvArgs {
  Dtype dtype, y_dtype;
  ConvActivation activation;
  float params[2];
  int32_t residual_after;  // the activation
  int32_t has_pool;
  int64_t N, C, H, W;       // of x
  int64_t F, R, S, groups;  // of the weight, (F, C / groups, R, S)
  int32_t winograd;         // what packed is packed for
  int64_t P, Q;             // rows and columns of the convolution
  int64_t out_h, out_w;     // of y: P and Q, or the pooled ones
  Pair stride, dilation;
  Padding padding;
  Window pool;
  const void* x;
  Strides x_strides;
  Layout x_layout;
  const void* packed;
  const void* bias;
  const void* residual;
  Strides residual_strides;
  Layout residual_layout;
  const float* weight_scale;
  int64_t weight_scale_step;  // 0: one value
  float x_scale, y_scale, residual_scale;
  int32_t x_zero_point, y_zero_point, residual_zero_point;
  // Set by the door:
  void* y;
  Strides y_strides;
  Layout y_layout;
};

// A convolution's weight as a model holds it.
struct ConvWeight {
  TensorView values;  // (F, C / groups, R, S), any strides; the check alone takes (F, C / groups, S), too
  int64_t groups;
  const char* algorithm = nullptr;  // null, "direct", or "winograd" for f32, 3x3 and one group
};

// pool2d: the largest value or the mean of every window.
//   max       NaN where a value of the window is NaN; what lies outside x takes no part. f32, bf16, u8, s8
//   average   the sum in f32, row by row, divided by the window's size; count_include_pad: padding counts as zeros,
//             else only what lies inside x counts (what a ceil_mode window has beyond the padding never counts). f32,
//             bf16
struct PoolCall {
  const char* op;
  TensorView x;      // (N, C, H, W) or (C, H, W)
  const char* kind;  // "max", "average"
  Window window;
  int32_t count_include_pad;
};
struct PoolArgs {
  Dtype dtype;
  int32_t average, count_include_pad;
  Window window;
  int64_t N, C, H, W, out_h, out_w;
  const void* x;
  Strides x_strides;
  Layout x_layout;
  void* y;  // set by the door, as its strides
  Strides y_strides;
  Layout y_layout;
};

// local_response_norm: y = x / (k + alpha / size * sum)^beta, the sum of x^2 over channels c - before to c + after, as
// far as there are such: torch has size / 2 of them before and (size - 1) / 2 after, ONNX the other way around.
//   f32, bf16   in f32: squares and their sum in the order of the channels, k + ... in one FMA, the division, one
//               rounding to y's dtype. The power is of square roots for beta 0.5 and 0.75, nothing for 1, and libm's
//               powf, a value at a time, for any other.
// A NaN or infinite value makes NaN of itself; of its neighbors NaN makes NaN, infinity zero.
struct LrnCall {
  const char* op;
  TensorView x;          // (N, C, H, W) or (N, C, W)
  int64_t size, before;  // channels of a window: all, and those before its own
  float alpha, beta, k;
};
struct LrnArgs {
  Dtype dtype;
  int64_t before, after;  // at most C - 1
  float scale, beta, k;   // scale: alpha / size
  int64_t N, C, H, W;
  const void* x;
  Strides x_strides;
  Layout x_layout;
  void* y;  // set by the door, as its strides
  Strides y_strides;
  Layout y_layout;
};

extern "C" {
// Each fills *args, all but the outputs. Returns 1, or 0 and *problem. A view whose strides are neither layout passes:
// the layout in *args tells, and the door copies it and checks again.
DSF_API int32_t dsf_fused_conv_check(const ConvCall* call, ConvArgs* args, Problem* problem);
DSF_API int32_t dsf_pool2d_check(const PoolCall* call, PoolArgs* args, Problem* problem);
DSF_API int32_t dsf_lrn_check(const LrnCall* call, LrnArgs* args, Problem* problem);
// The Layout of a view of 4 dimensions. What is both (one channel, one column) counts as pixels, which kernels read as
// they are.
DSF_API int32_t dsf_conv_layout(const TensorView* view);

// Whether weight can be packed. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fused_conv_pack_check(const ConvWeight* weight, Problem* problem);
DSF_API int64_t dsf_fused_conv_packed_bytes(const ConvWeight* weight);
DSF_API void dsf_fused_conv_pack(const Context* context, const ConvWeight* weight, void* packed);

// Bytes of context->workspace; -1 where that overflows.
DSF_API int64_t dsf_fused_conv_workspace_bytes(const Context* context, const ConvArgs* args);
DSF_API void dsf_fused_conv(const Context* context, const ConvArgs* args);
DSF_API int64_t dsf_pool2d_workspace_bytes(const Context* context, const PoolArgs* args);
DSF_API void dsf_pool2d(const Context* context, const PoolArgs* args);
DSF_API int64_t dsf_lrn_workspace_bytes(const Context* context, const LrnArgs* args);
DSF_API void dsf_lrn(const Context* context, const LrnArgs* args);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_fused_conv_variant(int32_t i, const char** name);
}

}  // namespace dsf
