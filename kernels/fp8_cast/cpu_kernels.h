// The kernels behind cpu.h: pure functions over a part of a row, one table of them per row of variants.inc.
#pragma once
#include "kernels/fp8_cast/cpu.h"

namespace dsf::fp8_cast {

inline constexpr int MAX_BLOCKS = 128;  // blocks whose scales one step holds
// The formats, in the order of the tables below.
inline constexpr Dtype FORMATS[] = {Dtype::f8e4m3, Dtype::f8e5m2, Dtype::f8e4m3fnuz, Dtype::f8e5m2fnuz,
                                    Dtype::f4e2m1x2};
inline constexpr int NUM_FORMATS = 5;

// How scales follow from amax.
struct ScaleRule {
  CastMode mode;
  ScaleKind kind;
  int32_t mantissa;          // bits of the codes' format
  int32_t largest_exponent;  // floor(log2(largest))
  int32_t mx;                // te: its MXFP8, a block of 32
  int32_t has_tensor_scale;
  float largest;
  float floor;            // of amax
  float infinite_factor;  // te: what an infinite factor becomes
  float tensor_scale;
};

// What encode does with v = x * factor, or x / factor.
struct EncodeRule {
  int32_t divide;
  int32_t saturate;
  int32_t midpoints_down;  // f4e2m1x2, as DeepGEMM's
  int32_t stochastic;
  int32_t bounded;  // no value is NaN, no size above the largest by more than rounding
  uint64_t seed;
};

// codes[i] of n values; first: the number of the first in its tensor, which stochastic rounding counts from.
using Encode = void (*)(const EncodeRule& rule, const void* x, int64_t n, int64_t block, const float* factors,
                        uint64_t first, uint8_t* codes);

// Factors: one per block of `block` values, or null for none (1).
struct Kernel {
  // bits[b] = max(bits[b], bits of |x|) over the b-th block of n values; ignore_nan: of the numbers alone.
  void (*amax)(const void* x, int64_t n, int64_t block, bool ignore_nan, uint32_t* bits);
  // scale[i] to get x back, factor[i] to encode with, code[i] the scale's byte, of n blocks.
  void (*scales)(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor, uint8_t* code);
  Encode encode[NUM_FORMATS];
  // y[i] = codes[i] * factor, in the kernel's dtype; n values.
  void (*decode[NUM_FORMATS])(const uint8_t* codes, int64_t n, int64_t block, const float* factors, void* y);
  // v = silu(gate) * up in f32.
  void (*silu_mul)(const void* gate, const void* up, int64_t n, float* v);
  // The sum of squares of n values, always in the same order; v = x * inverse * weight.
  float (*squares)(const void* x, int64_t n);
  void (*rms_norm)(const void* x, float inverse, const void* weight, int64_t n, float* v);
  float (*int8_row)(const void* x, int64_t n, int8_t* q);  // returns the scale
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/fp8_cast/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::fp8_cast
