// Scales of blocks from their amax, in every convention: the table of README.md, a line of ref.py's scale_of() each.
// Only exactly rounded operations: the same bits on every level.
#pragma once
#include <cstdint>

#include "csrc/gemm/fp8.h"
#include "kernels/fp8_cast/cpu_kernels.h"

namespace dsf::fp8_cast {
namespace {

inline constexpr uint32_t INF_BITS = 0x7F800000u, NAN_BITS = 0x7FC00000u, MANTISSA_BITS = 0x7FFFFFu;
inline constexpr uint32_t E8M0_NAN = 255;

inline float f32_from(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t bits_from(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

// The number of an e8m0 byte, 2^(b - 127), and 1 over it; both may be subnormal. 255 is NaN.
inline float power_of(uint32_t b) { return f32_from(b == E8M0_NAN ? NAN_BITS : b == 0 ? 0x400000u : b << 23); }
inline float inverse_power_of(uint32_t b) {
  return f32_from(b == E8M0_NAN ? NAN_BITS : b == 254 ? 0x400000u : (254 - b) << 23);
}
// NaN stays NaN.
inline float at_least(float amax, float floor) { return amax < floor ? floor : amax; }
// The power of two at or above s, of NaN and inf the largest.
inline uint32_t power_above(float s) {
  const uint32_t bits = bits_from(s), field = (bits >> 23) + (bits & MANTISSA_BITS ? 1 : 0);
  return field < 1 ? 1 : field > 254 ? 254 : field;
}
// The e4m3 code of a number in [2^-6, 448], and the number of such a code.
inline uint32_t e4m3_code_of_normal(float v) {
  const uint32_t bits = bits_from(v);
  return ((bits + 0x7FFFFu + (bits >> 20 & 1)) >> 20) - (120u << 3);
}
inline float e4m3_number_of_normal(uint32_t code) { return f32_from((code << 20) + (120u << 23)); }

template <class Body>
[[gnu::always_inline]] inline void each(int n, const uint32_t* amax_bits, const Body& body) {
  for (int i = 0; i < n; ++i) body(i, f32_from(amax_bits[i]));
}

// scale[i], what the codes are multiplied with to get x back, and factor[i], what x is multiplied with (rule.divide:
// divided by); code[i]: the byte of an e8m0 or e4m3 scale.
inline void scales_f32(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor) {
  const float largest = rule.largest, floor = rule.floor, inverse_largest = 1.0f / largest;
  switch (rule.mode) {
    case CastMode::v32:
      each(n, amax_bits, [&](int i, float amax) { factor[i] = scale[i] = at_least(amax, floor) * inverse_largest; });
      break;
    case CastMode::v3:
    case CastMode::vllm:
      each(n, amax_bits, [&](int i, float amax) { factor[i] = scale[i] = at_least(amax, floor) / largest; });
      break;
    case CastMode::tilekernels:
      each(n, amax_bits, [&](int i, float amax) {
        scale[i] = at_least(amax, floor) / largest;
        factor[i] = largest / at_least(amax, floor);
      });
      break;
    case CastMode::te:
      each(n, amax_bits, [&](int i, float amax) {
        float f = largest / amax;
        f = f > 3.40282347e38f ? rule.infinite_factor : f;
        f = amax > 0.0f && amax <= 3.40282347e38f ? f : 1.0f;
        factor[i] = f;
        scale[i] = 1.0f / f;
      });
      break;
    case CastMode::torchao:
      each(n, amax_bits, [&](int i, float amax) {
        factor[i] = largest / at_least(amax, floor);
        scale[i] = 1.0f / factor[i];
      });
      break;
    default:  // deepgemm
      each(n, amax_bits, [&](int i, float amax) {
        scale[i] = at_least(amax, floor) / largest;
        factor[i] = 1.0f / scale[i];
      });
  }
}

// The e8m0 byte of one block.
inline uint32_t e8m0_of(const ScaleRule& rule, uint32_t amax_bits) {
  const float amax = f32_from(amax_bits);
  const bool finite = amax_bits < INF_BITS;
  switch (rule.mode) {
    case CastMode::v32:
      return power_above(at_least(amax, rule.floor) * (1.0f / rule.largest));
    case CastMode::tilekernels: {
      const uint32_t b = ((bits_from(at_least(amax, rule.floor) / rule.largest) - 1) >> 23) + 1;
      return b > 254 ? 254 : b;
    }
    case CastMode::te: {
      if (!rule.mx) {
        float f = rule.largest / amax;
        f = bits_from(f) == INF_BITS ? rule.infinite_factor : f;
        if (!(amax > 0.0f) || !finite) f = 1.0f;
        const uint32_t field = bits_from(f) >> 23;
        return 254 - field;
      }
      const uint32_t d = bits_from(amax * (1.0f / rule.largest)), field = d >> 23, mantissa = d & MANTISSA_BITS;
      if (d > INF_BITS) return E8M0_NAN;
      if (d == INF_BITS) return 254;
      const bool up = mantissa > 0 && field != 254 && !(field == 0 && mantissa <= 0x400000u);
      return field + up;
    }
    case CastMode::torchao_rceil: {
      const uint32_t d = bits_from(amax * (1.0f / rule.largest)), field = d >> 23, mantissa = d & MANTISSA_BITS;
      if (d >= INF_BITS) return E8M0_NAN;
      return field + (field == 0 ? mantissa > 0x400000u : mantissa != 0);
    }
    case CastMode::torchao:
    case CastMode::torchao_ceil:
    case CastMode::torchao_even: {
      uint32_t bits = amax_bits;
      if (rule.mode == CastMode::torchao_even && bits <= INF_BITS)
        bits = (bits + (1u << (22 - rule.mantissa))) & ~MANTISSA_BITS;
      if (bits >= INF_BITS) return E8M0_NAN;
      int32_t exponent = int32_t(bits >> 23) - rule.largest_exponent;
      if (rule.mode == CastMode::torchao_ceil && bits & MANTISSA_BITS) ++exponent;
      return uint32_t(exponent < 0 ? 0 : exponent > 255 ? 255 : exponent);
    }
    default:  // v3, deepgemm, vllm
      return power_above(at_least(amax, rule.floor) / rule.largest);
  }
}

inline void scales_ue8m0(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor,
                         uint8_t* code) {
  for (int i = 0; i < n; ++i) {
    const uint32_t b = e8m0_of(rule, amax_bits[i]);
    code[i] = uint8_t(b);
    scale[i] = power_of(b);
    factor[i] = inverse_power_of(b);
  }
}

// NVFP4's second level: e4m3 scales of at least its smallest normal number.
inline void scales_e4m3(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor,
                        uint8_t* code) {
  constexpr float SMALLEST = 0x1p-6f, LARGEST = 448.0f;
  for (int i = 0; i < n; ++i) {
    float s = f32_from(amax_bits[i]) / rule.largest;
    if (rule.has_tensor_scale) s = s / rule.tensor_scale;
    const bool nan = s != s;
    s = s < SMALLEST ? SMALLEST : s > LARGEST ? LARGEST : s;
    code[i] = uint8_t(nan ? 0x7F : e4m3_code_of_normal(s));
    scale[i] = nan ? s : e4m3_number_of_normal(code[i]);
    factor[i] = (rule.has_tensor_scale ? 1.0f / rule.tensor_scale : 1.0f) / scale[i];
  }
}

inline void scales(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor,
                   uint8_t* code) {
  if (rule.kind == ScaleKind::f32) return scales_f32(rule, n, amax_bits, scale, factor);
  if (rule.kind == ScaleKind::ue8m0) return scales_ue8m0(rule, n, amax_bits, scale, factor, code);
  scales_e4m3(rule, n, amax_bits, scale, factor, code);
}

}  // namespace
}  // namespace dsf::fp8_cast
