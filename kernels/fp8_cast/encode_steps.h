// Codes 64 values at a time with AVX-512 VBMI, four vectors at a time elsewhere. What is left of a block, and every
// unusual rule, goes through encode.h.
#pragma once
#include "csrc/gemm/epilogue.h"
#include "kernels/fp8_cast/encode.h"

namespace dsf::fp8_cast {
namespace {

inline constexpr int64_t STEP = 64;  // values

#if defined(__AVX512VBMI__)
// 64 values as four vectors, and the bytes of a pair of vectors in the order of the values. Two-byte numbers come as
// the even and the odd ones of 32: one operation each widens them, and the last step orders them for nothing.
template <Dtype dtype, bool by_16>
struct Values64 {
  static constexpr bool INTERLEAVED = dtype == Dtype::bf16 && !by_16;
  __m512 v[4];

  [[gnu::always_inline]] explicit Values64(const void* x, int64_t i) {
    if constexpr (INTERLEAVED) {
      DSF_UNROLL
      for (int h = 0; h < 2; ++h) {
        const __m512i pairs = _mm512_loadu_si512(static_cast<const uint16_t*>(x) + i + 32 * h);
        v[2 * h] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        v[2 * h + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xFFFF0000))));
      }
    } else {
      DSF_UNROLL
      for (int q = 0; q < 4; ++q) v[q] = load_value<Vec, dtype>(x, i + 16 * q, 16);
    }
  }
  [[gnu::always_inline]] bool has_nan() const {
    const __mmask16 nan = _mm512_cmp_ps_mask(v[0], v[1], _CMP_UNORD_Q) | _mm512_cmp_ps_mask(v[2], v[3], _CMP_UNORD_Q);
    return nan != 0;
  }
};

// Byte 1 of every lane of a pair of vectors, in the order of the values, then byte 3 of every lane.
template <bool interleaved>
struct BytesOfPair {
  alignas(64) uint8_t index[64];
  constexpr BytesOfPair() : index{} {
    for (int j = 0; j < 32; ++j) {
      const int lane = interleaved ? j / 2 : j % 16, vector = interleaved ? j % 2 : j / 16;
      index[j] = uint8_t(64 * vector + 4 * lane + 1);
      index[32 + j] = uint8_t(64 * vector + 4 * lane + 3);
    }
  }
};

// nearest_code, saturating, of 64 numbers none of which is NaN, with six and a half operations for 16 of them: the
// sum's exponent field and units are the halves of each lane, which one VPMADDWD puts together as a code in byte 1; the
// sum's sign fills byte 3; one VPERMI2B takes both bytes of two vectors.
// bounded: no size is above the largest by more than rounds to it.
template <Dtype format, bool interleaved, bool bounded>
struct Codes64 {
  using C = Format<format>;
  static constexpr BytesOfPair<interleaved> BYTES{};
  const __m512 largest = _mm512_set1_ps(C::F::LARGEST), unit = _mm512_set1_ps(float(1 << C::KEPT));
  const __m512 smallest = _mm512_castsi512_ps(_mm512_set1_epi32(C::MIN_NORMAL));
  const __m512i fields = _mm512_set1_epi32((256 << C::F::MANTISSA) / 128 << 16 | 256);
  const __m512i order = _mm512_load_si512(BYTES.index);

  [[gnu::always_inline]] __m512i lanes(__m512 v) const {
    constexpr int LESS = 2, MORE = 3;  // of the two sizes, with the first one's sign
    const __m512 size = bounded ? v : _mm512_range_ps(v, largest, LESS);
    const __m512 power = _mm512_and_ps(size, _mm512_castsi512_ps(_mm512_set1_epi32(F32_SIGN | F32_EXPONENT)));
    const __m512 sum = _mm512_fmadd_ps(_mm512_range_ps(power, smallest, MORE), unit, size);
    return _mm512_madd_epi16(_mm512_castps_si512(sum), fields);
  }
  [[gnu::always_inline]] __m512i codes(const __m512 (&v)[4]) const {
    const __m512i first = _mm512_permutex2var_epi8(lanes(v[0]), order, lanes(v[1]));
    const __m512i last = _mm512_permutex2var_epi8(lanes(v[2]), order, lanes(v[3]));
    const __m512i size = _mm512_sub_epi8(_mm512_shuffle_i64x2(first, last, 0x44), _mm512_set1_epi8(char(C::OFFSET)));
    const __m512i signs = _mm512_shuffle_i64x2(first, last, 0xEE);
    __m512i codes;
    if constexpr (C::FP4)
      codes = _mm512_ternarylogic_epi32(size, signs, _mm512_set1_epi8(C::SIGN), 0xF8);  // size | (signs & SIGN)
    else
      codes = _mm512_ternarylogic_epi32(size, signs, _mm512_set1_epi8(char(C::SIGN)), 0xF8);
    if constexpr (C::FNUZ) codes = _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(size, size), codes);
    return codes;
  }
};

// The same by the careful way, for a step that holds NaN.
template <Dtype dtype, Dtype format, class Scaling>
[[gnu::noinline]] void encode_step_with_nan(const void* x, int64_t i, const Scaling& scaled, uint8_t* codes) {
  for (int q = 0; q < 4; ++q) {
    const auto value = load_value<Vec, dtype>(x, i + 16 * q, 16);
    const auto v = scaled.any(value);
    const auto code = nearest_code<Vec, format>(v, Format<format>::F::LARGEST);
    Vec::store_low8(codes + i + 16 * q, with_sign_and_nan<Vec, format>(code, v, value, true), 16);
  }
}

// x / s where 2^-100 <= s <= 2^100, with the bits of VDIVPS, which takes three times as long: two corrections of
// x * RN(1 / s) by exact remainders (Markstein 1990; Muller et al., Handbook of Floating-Point Arithmetic, section
// 4.7). Quotients that are so small that a remainder underflows have the code 0 either way.
// Infinities make NaN of it; `any` takes them too.
struct Divisor {
  __m512 s, inverse;
  static bool fits(float s) { return s >= 0x1p-100f && s <= 0x1p100f; }
  [[gnu::always_inline]] explicit Divisor(float value)
      : s(_mm512_set1_ps(value)), inverse(_mm512_set1_ps(1.0f / value)) {}
  __m512 any(__m512 x) const { return _mm512_div_ps(x, s); }
  [[gnu::always_inline]] __m512 operator()(__m512 x) const {
    __m512 q = _mm512_mul_ps(x, inverse);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, s, x), inverse, q);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, s, x), inverse, q);
    return _mm512_or_ps(q, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));  // a remainder of zero makes +0 of -0
  }
};
struct Unscaled {
  static bool fits(float) { return true; }
  explicit Unscaled(float) {}
  [[gnu::always_inline]] __m512 operator()(__m512 x) const { return x; }
  __m512 any(__m512 x) const { return x; }
};
struct Factor {
  __m512 value;
  static bool fits(float) { return true; }
  [[gnu::always_inline]] explicit Factor(float factor) : value(_mm512_set1_ps(factor)) {}
  [[gnu::always_inline]] __m512 operator()(__m512 x) const { return _mm512_mul_ps(x, value); }
  __m512 any(__m512 x) const { return _mm512_mul_ps(x, value); }
};

// While a part is encoded, what the next part's amax reads comes: the two are PREFETCH values apart (cpu.cc's PART).
// Without amax 4 KiB ahead are best: of 4, 8, 16 and 32 KiB f32 from memory 7.3, 5.3, 4.6 and 6.5 G/s (Zen 5, 2026-11).
inline constexpr int64_t PREFETCH = 2048, PLAIN_BYTES = 4096;
template <Dtype dtype>
[[gnu::always_inline]] inline void prefetch(const void* x, int64_t i) {
  constexpr int64_t BYTES = dtype == Dtype::f32 ? 4 : 2, LINE = 64;
  const char* at = static_cast<const char*>(x) + i * BYTES;
  DSF_UNROLL
  for (int64_t line = 0; line < STEP * BYTES; line += LINE) __builtin_prefetch(at + line);
}

// Blocks that are multiples of a step, all but what is left of the last one. Returns how many values are done.
template <Dtype dtype, Dtype format, class Scaling, bool bounded>
[[gnu::noinline]] int64_t encode_long_blocks(const void* x, int64_t n, int64_t block, const float* factors,
                                             uint8_t* codes) {
  using Values = Values64<dtype, false>;
  const Codes64<format, Values::INTERLEAVED, bounded> to;
  int64_t i = 0;
  for (int64_t end = 0; end < n; ++factors) {
    end = n - end < block ? n : end + block;
    if (!Scaling::fits(*factors)) return i;
    const Scaling scaled(*factors);
    for (bool nan = false; i + STEP <= end; nan = false) {
      for (; i + STEP <= end && !nan; i += STEP) {
        prefetch<dtype>(x, i + (bounded ? PREFETCH : PLAIN_BYTES / (dtype == Dtype::f32 ? 4 : 2)));
        Values values(x, i);
        DSF_UNROLL
        for (int q = 0; q < 4; ++q) values.v[q] = scaled(values.v[q]);
        nan = !bounded && values.has_nan();
        _mm512_storeu_si512(codes + i, to.codes(values.v));
      }
      // Outside of the loop, whose constants a call would push out of registers.
      if (nan) encode_step_with_nan<dtype, format>(x, i - STEP, scaled, codes);
    }
  }
  return i;
}

// Blocks of 16 and 32, of which a step holds several.
template <Dtype dtype, Dtype format, class Scaling, bool bounded, bool by_16>
[[gnu::noinline]] int64_t encode_short_blocks(const void* x, int64_t n, const float* factors, uint8_t* codes) {
  using Values = Values64<dtype, by_16>;
  const Codes64<format, Values::INTERLEAVED, bounded> to;
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP, factors += by_16 ? 4 : 2) {
    Values values(x, i);
    DSF_UNROLL
    for (int q = 0; q < 4; ++q) {
      const float factor = factors[by_16 ? q : q / 2];
      if (!Scaling::fits(factor)) return i;
      values.v[q] = Scaling(factor)(values.v[q]);
    }
    if (!bounded && values.has_nan()) [[unlikely]]
      return i;
    _mm512_storeu_si512(codes + i, to.codes(values.v));
  }
  return i;
}

// A factor for each value.
template <Dtype dtype, Dtype format>
[[gnu::noinline]] int64_t encode_each(const void* x, int64_t n, const float* factors, uint8_t* codes) {
  using Values = Values64<dtype, true>;
  const Codes64<format, Values::INTERLEAVED, false> to;
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP) {
    Values values(x, i);
    DSF_UNROLL
    for (int q = 0; q < 4; ++q) values.v[q] = _mm512_mul_ps(values.v[q], _mm512_loadu_ps(factors + i + 16 * q));
    if (values.has_nan()) [[unlikely]]
      return i;
    _mm512_storeu_si512(codes + i, to.codes(values.v));
  }
  return i;
}

template <Dtype dtype, Dtype format, class Scaling, bool bounded>
inline int64_t encode_blocks(const void* x, int64_t n, int64_t block, const float* factors, uint8_t* codes) {
  if (block >= n) return encode_long_blocks<dtype, format, Scaling, bounded>(x, n, n, factors, codes);
  if (block % STEP == 0) return encode_long_blocks<dtype, format, Scaling, bounded>(x, n, block, factors, codes);
  if (block == 32) return encode_short_blocks<dtype, format, Scaling, bounded, false>(x, n, factors, codes);
  if (block == 16) return encode_short_blocks<dtype, format, Scaling, bounded, true>(x, n, factors, codes);
  return 0;
}

// As many values from the first on as whole steps hold. The rule is a usual one.
template <Dtype dtype, Dtype format>
inline int64_t encode_steps(const EncodeRule& rule, const void* x, int64_t n, int64_t block, const float* factors,
                            uint8_t* codes) {
  constexpr float ONE = 1.0f;
  if (!factors) return encode_long_blocks<dtype, format, Unscaled, false>(x, n, n, &ONE, codes);
  if (block == 1 && n > 1) return rule.divide ? 0 : encode_each<dtype, format>(x, n, factors, codes);
  if (rule.divide) return encode_blocks<dtype, format, Divisor, false>(x, n, block, factors, codes);
  if (rule.bounded) return encode_blocks<dtype, format, Factor, true>(x, n, block, factors, codes);
  return encode_blocks<dtype, format, Factor, false>(x, n, block, factors, codes);
}

#else
// Four vectors at a time, of one block: none, or blocks as long as n.
template <Dtype dtype, Dtype format>
inline int64_t encode_steps(const EncodeRule& rule, const void* x, int64_t n, int64_t block, const float* factors,
                            uint8_t* codes) {
  using V = Vec;
  if (block < n || rule.divide) return 0;
  const auto factor = V::set1(factors ? *factors : 1.0f);
  int64_t i = 0;
  for (; i + 4 * V::LANES <= n; i += 4 * V::LANES) {
    V::i32 code[4];
    DSF_UNROLL
    for (int q = 0; q < 4; ++q) {
      const auto value = load_value<V, dtype>(x, i + q * V::LANES, V::LANES);
      const auto v = V::mul(value, factor);
      code[q] = nearest_code<V, format>(v, Format<format>::F::LARGEST);
      code[q] = V::add_i32(with_sign_and_nan<V, format>(code[q], v, value, true), -128);
    }
    V::template store_codes<128>(codes + i, code[0], code[1], code[2], code[3]);
  }
  return i;
}
#endif

}  // namespace
}  // namespace dsf::fp8_cast
