// The kernels behind cpu.h: pure functions over a block of output rows, one table of them per row of variants.inc.
// They see channels side by side only; cpu.cc turns planes into pixels and back, a strip of rows at a time.
#pragma once
#include "kernels/fused_conv/cpu.h"

namespace dsf::fused_conv {

struct Range {
  int64_t begin, end;
};

// Rows of one image, channels side by side: channel c of (h, w) is element (h - h_begin) * stride_h + w * stride_w + c.
// Of a stem, w counts the convolution's pixels: the run of S * C values under a row of its taps begins at (h, q).
struct Pixels {
  const char* data;  // null: there is no such tensor
  int64_t h_begin, stride_h, stride_w;
};

// Rows `p` and channels `f` of one image's convolution, finished: with bias, residual and activation, before the pool.
struct Block {
  Range p, f;
  Pixels x;         // at least the rows that p needs, of those inside x
  Pixels residual;  // rows p, all F channels
  char* y;          // y_dtype, at (p.begin, 0, f.begin)
  int64_t y_stride_h, y_stride_w;
  const char* outside;       // a pixel that taps outside x read: 0, or x_zero_point; C values, of a stem S * C
  const float* multipliers;  // u8, s8: x_scale * weight_scale / y_scale of all F channels
  const char** runs;         // scratch: MAX_TILE_PIXELS pointers a tap
  char* scratch;             // of winograd
};
inline constexpr int64_t MAX_TILE_PIXELS = 16;

// Rows `out` of one image's pool.
struct PoolBlock {
  Range out;
  int64_t channels;
  Pixels x;  // at least the rows that out needs
  char* y;   // at (out.begin, 0, channel 0)
  int64_t y_stride_h, y_stride_w;
};

// What a pool needs to know beside its block: pool2d's, or that of fused_conv on (P, Q).
struct PoolRule {
  Window window;
  int64_t H, W, out_w;  // of what is pooled, and of the result
  int32_t average, count_include_pad;
};

// A local response norm: x / (k + scale * (the sum of squares of channels c - before to c + after))^beta.
struct LrnRule {
  int64_t before, after;
  float scale, k, beta;
};

// Some pixels, one after the other; strides in values.
struct LrnBlock {
  int64_t pixels, channels;
  const char* x;
  int64_t x_stride;
  char* y;
  int64_t y_stride;
  float* squares;  // scratch: squares_row values a pixel, the first `before` and the last `after` of them zeros
};
inline constexpr int64_t MAX_LANES = 16;
inline int64_t squares_row(const LrnRule& rule, int64_t channels) {
  return rule.before + (channels + MAX_LANES - 1) / MAX_LANES * MAX_LANES + rule.after;
}

struct Kernel {
  // Every path gives all rows and channels of the block; which one serves a weight is path_of's choice (packed.h).
  void (*tiles)(const ConvArgs& args, const Block& block);      // block.f begins at a panel
  void (*depthwise)(const ConvArgs& args, const Block& block);  // one channel a group
  void (*grouped)(const ConvArgs& args, const Block& block);    // few channels a group
  void (*winograd)(const ConvArgs& args, const Block& block);   // f32; else null. block.f begins at a panel
  void (*pool)(const PoolRule& rule, const PoolBlock& block);
  void (*lrn)(const LrnRule& rule, const LrnBlock& block);
  // pixels[i * pixel_stride + c] = planes[c * plane_stride + i] of `channels` and `count` pixels, and back.
  void (*to_pixels)(const char* planes, int64_t plane_stride, int64_t channels, int64_t count, char* pixels,
                    int64_t pixel_stride);
  void (*to_planes)(const char* pixels, int64_t pixel_stride, int64_t channels, int64_t count, char* planes,
                    int64_t plane_stride);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/fused_conv/variants.inc"
#undef DSF_VARIANT

// The best one for x's dtype under the level in force.
const Kernel& kernel_of(Dtype dtype);

}  // namespace dsf::fused_conv
