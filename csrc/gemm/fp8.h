// FP8 codes to numbers, exactly, all 256 of each format: zeros, subnormals, infinities (e5m2) and NaN too; and back.
#pragma once
#include <cstdint>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/unroll.h"

namespace dsf {
namespace {

// One format: sign, exponent and mantissa fields, and where its numbers end.
template <Dtype dtype>
struct Fp8;
template <>
struct Fp8<Dtype::f8e4m3> {  // 1-4-3, bias 7; no infinity, NaN is S.1111.111
  static constexpr int MANTISSA = 3, BIAS = 7;
  static constexpr int32_t FIRST_SPECIAL = 0x7F;
  static constexpr float LARGEST = 448.0f;
};
template <>
struct Fp8<Dtype::f8e5m2> {  // 1-5-2, bias 15; as IEEE: S.11111.00 is infinity, the rest of that exponent is NaN
  static constexpr int MANTISSA = 2, BIAS = 15;
  static constexpr int32_t FIRST_SPECIAL = 0x7C;
  static constexpr float LARGEST = 57344.0f;
};
// FNUZ: one zero and no infinity; the one NaN is 0x80, the code that -0 would have.
template <>
struct Fp8<Dtype::f8e4m3fnuz> {  // 1-4-3, bias 8
  static constexpr int MANTISSA = 3, BIAS = 8;
  static constexpr int32_t FIRST_SPECIAL = 0x80;
  static constexpr float LARGEST = 240.0f;
};
template <>
struct Fp8<Dtype::f8e5m2fnuz> {  // 1-5-2, bias 16
  static constexpr int MANTISSA = 2, BIAS = 16;
  static constexpr int32_t FIRST_SPECIAL = 0x80;
  static constexpr float LARGEST = 57344.0f;
};
template <>
struct Fp8<Dtype::f4e2m1x2> {  // 1-2-1, bias 1; neither infinity nor NaN
  static constexpr int MANTISSA = 1, BIAS = 1;
  static constexpr int32_t FIRST_SPECIAL = 0x8;
  static constexpr float LARGEST = 6.0f;
};

template <class V>
[[gnu::always_inline]] inline typename V::f32 f32_of(int32_t bits) {
  return V::f32_of_bits(V::add_i32(V::zero_i32(), bits));
}

// Codes in the low byte of each lane -> f32. No step reads or writes a subnormal f32, so that a caller who flushes
// them to zero changes nothing.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline typename V::f32 fp8_to_f32(typename V::i32 codes) {
  using F = Fp8<dtype>;
  constexpr int SHIFT = 23 - F::MANTISSA;
  constexpr int32_t F32_BIAS = 127, EXPONENT_BITS = 0xFF << 23;
  constexpr int32_t SMALLEST = (F32_BIAS + 1 - F::BIAS - F::MANTISSA) << 23;  // bits of the smallest subnormal code
  const auto magnitude = V::and_bits(codes, 0x7F);
  const auto shifted = V::template shift_left<SHIFT>(magnitude);
  const auto normal = V::add_i32(shifted, (F32_BIAS - F::BIAS) << 23);
  // A subnormal code counts the smallest one: an exact product of small integers and a power of two.
  const auto unit = f32_of<V>(SMALLEST);
  const auto subnormal = V::bits_of(V::mul(V::to_f32(magnitude), unit));
  auto bits = V::select_below(magnitude, 1 << F::MANTISSA, subnormal, normal);
  const auto special = V::or_bits(shifted, V::add_i32(V::zero_i32(), EXPONENT_BITS));
  bits = V::select_below(magnitude, F::FIRST_SPECIAL, bits, special);
  return V::f32_of_bits(V::or_bits(bits, V::template shift_left<24>(V::and_bits(codes, 0x80))));
}

// Bytes of the bf16 numbers of the codes without sign.
template <Dtype dtype>
struct Fp8Bytes {
  alignas(64) uint8_t low[128] = {}, high[128] = {};

  constexpr Fp8Bytes() {
    using F = Fp8<dtype>;
    for (int code = 0; code < 128; ++code) {
      const int field = code >> F::MANTISSA, mantissa = code & ((1 << F::MANTISSA) - 1);
      int bits = ((field + 127 - F::BIAS) << 7) | mantissa << (7 - F::MANTISSA);
      if (field == 0) {
        int leading = F::MANTISSA - 1;  // place of the highest one
        while (leading >= 0 && !(mantissa >> leading & 1)) --leading;
        const int exponent = 127 + 1 - F::BIAS - F::MANTISSA + leading;
        bits = mantissa ? exponent << 7 | ((mantissa << (7 - leading)) & 0x7F) : 0;
      }
      if (code >= F::FIRST_SPECIAL) bits = 0x7F80 | mantissa << (7 - F::MANTISSA);
      low[code] = uint8_t(bits);
      high[code] = uint8_t(bits >> 8);
    }
  }
  constexpr uint16_t bf16(uint8_t code) const {
    return uint16_t((code & 0x80) << 8 | high[code & 0x7F] << 8 | low[code & 0x7F]);
  }
};

// Quads of k of LANES columns, as packed.h has them -> the bf16 pairs (k, k + 1) and (k + 2, k + 3), as bits.
#ifdef __AVX512VBMI__
// Two lookups of 128 entries each make the low and the high byte of 64 numbers, the sign comes from the code.
template <class V, Dtype dtype>
struct Fp8Decoder {
  static constexpr Fp8Bytes<dtype> TABLE{};
  const __m512i low0 = _mm512_load_si512(TABLE.low), low1 = _mm512_load_si512(TABLE.low + 64);
  const __m512i high0 = _mm512_load_si512(TABLE.high), high1 = _mm512_load_si512(TABLE.high + 64);
  const __m512i sign = _mm512_set1_epi8(char(0x80));

  [[gnu::always_inline]] void pairs(const char* codes, __m512i* first, __m512i* second) const {
    __m512i code = _mm512_loadu_si512(codes);
    V::keep(code);  // or GCC 12 loads it three times, where loads are what there is least of
    decode(code, first, second);
  }
  // Of quads that lie side by side, column after column.
  [[gnu::always_inline]] void of_quads(__m512i quads, __m512i* first, __m512i* second) const {
    const __m512i pairs_apart =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    decode(_mm512_shuffle_epi8(quads, pairs_apart), first, second);
  }

 private:
  [[gnu::always_inline]] void decode(__m512i code, __m512i* first, __m512i* second) const {
    const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, code, high1);
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, code, sign, 0xF8);  // magnitude | (code & sign)
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
  }
};
#else
template <class V, Dtype dtype>
struct Fp8Decoder {
  [[gnu::always_inline]] void pairs(const char* codes, typename V::i32* first, typename V::i32* second) const {
    of_quads(V::load_fp8_quads(codes), first, second);
  }
  // Of quads that lie side by side, column after column.
  [[gnu::always_inline]] void of_quads(typename V::i32 quad, typename V::i32* first, typename V::i32* second) const {
    *first = pair(fp8_to_f32<V, dtype>(V::template byte_of_quad<0>(quad)),
                  fp8_to_f32<V, dtype>(V::template byte_of_quad<1>(quad)));
    *second = pair(fp8_to_f32<V, dtype>(V::template byte_of_quad<2>(quad)),
                   fp8_to_f32<V, dtype>(V::template byte_of_quad<3>(quad)));
  }
  static typename V::i32 pair(typename V::f32 even, typename V::f32 odd) {
    return V::or_bits(V::template shift_right<16>(V::bits_of(even)), V::and_bits(V::bits_of(odd), int32_t(0xFFFF0000)));
  }
};
#endif

// A packed block of fp8 (quads of k of PANEL_N columns) -> rows of bf16 pairs, one per two k. Every fp8 number is a
// bf16.
template <class V, Dtype dtype>
inline void decode_fp8_bf16(const char* codes, int64_t quads, char* weights) {
  const Fp8Decoder<V, dtype> decoder;
  auto* row = reinterpret_cast<int32_t*>(weights);
  for (int64_t q = 0; q < quads; ++q, codes += PANEL_N * 4, row += PANEL_N * 2) {
    DSF_UNROLL
    for (int n = 0; n < PANEL_N; n += V::LANES) {
      typename V::i32 first, second;
      decoder.pairs(codes + n * 4, &first, &second);
      V::store_i32(row + n, first);
      V::store_i32(row + PANEL_N + n, second);
    }
  }
}

// The same -> rows of f32, one per k.
template <class V, Dtype dtype>
inline void decode_fp8_f32(const char* codes, int64_t quads, char* weights) {
  const Fp8Decoder<V, dtype> decoder;
  auto* row = reinterpret_cast<float*>(weights);
  const auto store = [](float* at, typename V::i32 pair) __attribute__((always_inline)) {
    V::store(at, V::f32_of_bits(V::template shift_left<16>(pair)));
    V::store(at + PANEL_N, V::f32_of_bits(V::and_bits(pair, int32_t(0xFFFF0000))));
  };
  for (int64_t q = 0; q < quads; ++q, codes += PANEL_N * 4, row += PANEL_N * 4) {
    DSF_UNROLL
    for (int n = 0; n < PANEL_N; n += V::LANES) {
      typename V::i32 first, second;
      decoder.pairs(codes + n * 4, &first, &second);
      store(row + n, first);
      store(row + 2 * PANEL_N + n, second);
    }
  }
}

inline constexpr float FP8_SMALLEST_AMAX = 1e-4f;  // DeepGEMM's floor: a block of zeros has a scale above zero

// f32 constants of a format's rounding.
template <Dtype dtype>
struct Fp8Rounding {
  using F = Fp8<dtype>;
  static constexpr int32_t KEPT = 23 - F::MANTISSA;                  // low bits of an f32 that the format has not
  static constexpr int32_t NORMAL = (128 - F::BIAS) << 23;           // bits of the smallest normal number
  static constexpr int32_t UNIT = NORMAL - (F::MANTISSA << 23);      // of the distance between the numbers below it
  static constexpr int32_t SHIFTER = UNIT + (23 << 23) + (1 << 22);  // of 1.5 * 2^23 units: adding it rounds to units
};

// The number of the format nearest to v, ties to even, sizes above the largest cut to it; NaN stays NaN.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline typename V::f32 round_to_fp8(typename V::f32 v) {
  using R = Fp8Rounding<dtype>;
  constexpr int32_t HALF = (1 << (R::KEPT - 1)) - 1, INFINITY_BITS = 0x7F800000;
  const auto sign = V::and_bits(V::bits_of(v), int32_t(0x80000000));
  const auto size = V::min_limit(V::abs(v), Fp8<dtype>::LARGEST);
  const auto bits = V::bits_of(size);
  const auto odd = V::and_bits(V::template shift_right<R::KEPT>(bits), 1);
  const auto normal = V::and_bits(V::add_i32(V::plus_i32(bits, odd), HALF), ~((1 << R::KEPT) - 1));
  const auto shifter = f32_of<V>(R::SHIFTER);
  const auto subnormal = V::bits_of(V::sub(V::add(size, shifter), shifter));
  auto rounded = V::select_below(bits, R::NORMAL, subnormal, normal);
  rounded = V::select_below(bits, INFINITY_BITS, rounded, bits);  // the largest payloads of NaN would carry over
  return V::f32_of_bits(V::or_bits(rounded, sign));
}

}  // namespace
}  // namespace dsf
