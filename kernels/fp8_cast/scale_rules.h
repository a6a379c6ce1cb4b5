// Scales of blocks from their amax, in every convention: the table of README.md, a line of ref.py's scale_of() each.
// Only exactly rounded operations: the same bits on every level, and in CUDA kernels (compiled without contraction).
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/gemm/fp8.h"
#include "kernels/fp8_cast/cpu_kernels.h"

namespace dsf::fp8_cast {
namespace {

inline constexpr uint32_t INF_BITS = 0x7F800000u, NAN_BITS = 0x7FC00000u, MANTISSA_BITS = 0x7FFFFFu;
inline constexpr uint32_t E8M0_NAN = 255;

DSF_HOST_DEVICE inline float f32_from(uint32_t bits) { return __builtin_bit_cast(float, bits); }
DSF_HOST_DEVICE inline uint32_t bits_from(float value) { return __builtin_bit_cast(uint32_t, value); }

// The number of an e8m0 byte, 2^(b - 127), and 1 over it; both may be subnormal. 255 is NaN.
DSF_HOST_DEVICE inline float power_of(uint32_t b) {
  return f32_from(b == E8M0_NAN ? NAN_BITS : b == 0 ? 0x400000u : b << 23);
}
DSF_HOST_DEVICE inline float inverse_power_of(uint32_t b) {
  return f32_from(b == E8M0_NAN ? NAN_BITS : b == 254 ? 0x400000u : (254 - b) << 23);
}
// NaN stays NaN.
DSF_HOST_DEVICE inline float at_least(float amax, float floor) { return amax < floor ? floor : amax; }
// The power of two at or above s, of NaN and inf the largest.
DSF_HOST_DEVICE inline uint32_t power_above(float s) {
  const uint32_t bits = bits_from(s), field = (bits >> 23) + (bits & MANTISSA_BITS ? 1 : 0);
  return field < 1 ? 1 : field > 254 ? 254 : field;
}
// The e4m3 code of a number in [2^-6, 448], and the number of such a code.
DSF_HOST_DEVICE inline uint32_t e4m3_code_of_normal(float v) {
  const uint32_t bits = bits_from(v);
  return ((bits + 0x7FFFFu + (bits >> 20 & 1)) >> 20) - (120u << 3);
}
DSF_HOST_DEVICE inline float e4m3_number_of_normal(uint32_t code) { return f32_from((code << 20) + (120u << 23)); }

template <class Body>
[[gnu::always_inline]] DSF_HOST_DEVICE inline void each(int n, const uint32_t* amax_bits, const Body& body) {
  for (int i = 0; i < n; ++i) body(i, f32_from(amax_bits[i]));
}

// scale[i], what the codes are multiplied with to get x back, and factor[i], what x is multiplied with (rule.divide:
// divided by); code[i]: the byte of an e8m0 or e4m3 scale.
DSF_HOST_DEVICE inline void scales_f32(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale,
                                       float* factor) {
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

// The bytes of e8m0 scales, 255 for NaN: byte_of(amax, its bits) for each block, without a branch.
template <class ByteOf>
[[gnu::always_inline]] DSF_HOST_DEVICE inline void each_e8m0(int n, const uint32_t* amax_bits, float* scale,
                                                             float* factor, uint8_t* code, const ByteOf& byte_of) {
  for (int i = 0; i < n; ++i) {
    const uint32_t b = byte_of(f32_from(amax_bits[i]), amax_bits[i]);
    code[i] = uint8_t(b);
    scale[i] = power_of(b);
    factor[i] = inverse_power_of(b);
  }
}

DSF_HOST_DEVICE inline void scales_ue8m0(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale,
                                         float* factor, uint8_t* code) {
  const float largest = rule.largest, floor = rule.floor, inverse_largest = 1.0f / largest;
  const auto each = [&](const auto& byte_of) { each_e8m0(n, amax_bits, scale, factor, code, byte_of); };
  // Open Compute's MX: the exponent of amax over that of the largest number.
  const auto mx = [&](uint32_t bits, uint32_t more) {
    const int32_t exponent = int32_t((bits >> 23) + more) - rule.largest_exponent;
    return bits >= INF_BITS ? E8M0_NAN : uint32_t(exponent < 0 ? 0 : exponent > 255 ? 255 : exponent);
  };
  switch (rule.mode) {
    case CastMode::v32:
      each([&](float amax, uint32_t) { return power_above(at_least(amax, floor) * inverse_largest); });
      break;
    case CastMode::tilekernels:
      each([&](float amax, uint32_t) {
        const uint32_t b = ((bits_from(at_least(amax, floor) / largest) - 1) >> 23) + 1;
        return b > 254 ? 254 : b;
      });
      break;
    case CastMode::te:
      if (rule.mx)
        each([&](float amax, uint32_t) {
          const uint32_t d = bits_from(amax * inverse_largest), field = d >> 23, mantissa = d & MANTISSA_BITS;
          const uint32_t up = (mantissa > 0) & (field != 254) & !((field == 0) & (mantissa <= 0x400000u));
          return d > INF_BITS ? E8M0_NAN : d == INF_BITS ? 254 : field + up;
        });
      else
        each([&](float amax, uint32_t bits) {
          float f = largest / amax;
          f = bits_from(f) == INF_BITS ? rule.infinite_factor : f;
          f = bits > 0 && bits < INF_BITS ? f : 1.0f;
          return 254 - (bits_from(f) >> 23);
        });
      break;
    case CastMode::torchao_rceil:
      each([&](float amax, uint32_t) {
        const uint32_t d = bits_from(amax * inverse_largest), field = d >> 23, mantissa = d & MANTISSA_BITS;
        return d >= INF_BITS ? E8M0_NAN : field + (field == 0 ? mantissa > 0x400000u : mantissa != 0);
      });
      break;
    case CastMode::torchao:
      each([&](float, uint32_t bits) { return mx(bits, 0); });
      break;
    case CastMode::torchao_ceil:
      each([&](float, uint32_t bits) { return mx(bits, (bits & MANTISSA_BITS) != 0); });
      break;
    case CastMode::torchao_even:
      each([&](float, uint32_t bits) {
        const uint32_t half = 1u << (22 - rule.mantissa);
        return mx(bits > INF_BITS ? bits : (bits + half) & ~MANTISSA_BITS, 0);
      });
      break;
    default:  // v3, deepgemm, vllm
      each([&](float amax, uint32_t) { return power_above(at_least(amax, floor) / largest); });
  }
}

// NVFP4's second level: e4m3 scales of at least its smallest normal number.
DSF_HOST_DEVICE inline void scales_e4m3(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale,
                                        float* factor, uint8_t* code) {
  constexpr float SMALLEST = 0x1p-6f, LARGEST = 448.0f;
  constexpr uint32_t NAN_CODE = 0x7F;
  const float tensor_scale = rule.has_tensor_scale ? rule.tensor_scale : 1.0f, inverse = 1.0f / tensor_scale;
  const float largest = rule.largest;
  for (int i = 0; i < n; ++i) {  // by 1 changes no bit
    const float wanted = f32_from(amax_bits[i]) / largest / tensor_scale;
    const bool nan = bits_from(wanted) > INF_BITS;
    const float above = wanted < SMALLEST ? SMALLEST : wanted, s = above > LARGEST ? LARGEST : above;
    const uint32_t b = nan ? NAN_CODE : e4m3_code_of_normal(s);
    code[i] = uint8_t(b);
    scale[i] = nan ? s : e4m3_number_of_normal(b);
    factor[i] = inverse / scale[i];
  }
}

DSF_HOST_DEVICE inline void scales(const ScaleRule& rule, int n, const uint32_t* amax_bits, float* scale, float* factor,
                                   uint8_t* code) {
  if (rule.kind == ScaleKind::f32) return scales_f32(rule, n, amax_bits, scale, factor);
  if (rule.kind == ScaleKind::ue8m0) return scales_ue8m0(rule, n, amax_bits, scale, factor, code);
  scales_e4m3(rule, n, amax_bits, scale, factor, code);
}

}  // namespace
}  // namespace dsf::fp8_cast
